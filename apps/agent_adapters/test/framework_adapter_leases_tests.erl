%% @doc Workers of other machines in the pool's books.
-module(framework_adapter_leases_tests).

-include_lib("eunit/include/eunit.hrl").

-define(KEY, {<<"langchain">>, <<"a">>, 1, <<"default">>}).

new() ->
    framework_adapter_leases:new(#{max_per_framework => 1, max_waiting => 10}).

request(N, L) ->
    framework_adapter_leases:request(?KEY, #{ref => make_ref(), owner => self(), task_id => integer_to_binary(N), agent => #{}}, L).

they_count_beyond_the_maximum_of_this_machine_test() ->
    {[{start, _, ?KEY, _}], L1} = request(1, new()),
    {[], L2} = request(2, L1),
    {[{start, _, ?KEY, _}], L3} = framework_adapter_leases:extra(<<"langchain">>, 1, L2),
    ?assertMatch({[], _}, request(3, L3)).

without_an_environment_here_they_are_all_there_is_test() ->
    {[], L1} = framework_adapter_leases:extra(<<"langchain">>, -1, new()),
    {[], L2} = request(1, L1),
    {[{start, Id, ?KEY, _}], L3} = framework_adapter_leases:extra(<<"langchain">>, 0, L2),
    %% It is lost, and its place with it: the task waits for the next one.
    {[], L4} = framework_adapter_leases:extra(<<"langchain">>, -1, L3),
    {[], L5} = framework_adapter_leases:ended(Id, normal, L4),
    ?assertMatch({[{start, _, ?KEY, _}], _}, framework_adapter_leases:extra(<<"langchain">>, 0, L5)).

langgraph_shares_the_environment_of_langchain_test() ->
    Key = {<<"langgraph">>, <<"g">>, 1, <<"default">>},
    Request = #{ref => make_ref(), owner => self(), task_id => <<"t">>, agent => #{}},
    {[], L1} = framework_adapter_leases:extra(<<"langchain">>, -1, new()),
    {[], L2} = framework_adapter_leases:request(Key, Request, L1),
    ?assertMatch({[{start, _, Key, _}], _}, framework_adapter_leases:extra(<<"langchain">>, 0, L2)).
