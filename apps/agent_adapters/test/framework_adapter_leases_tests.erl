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

what_is_deeper_has_more_workers_and_goes_first_test() ->
    Nested = fun(Depth, L) -> framework_adapter_leases:request(?KEY, #{ref => make_ref(), owner => self(), task_id => <<"n">>,
                                                                       agent => #{}, depth => Depth}, L) end,
    {[{start, One, ?KEY, _}], L1} = request(1, new()),
    {[{grant, One, _}], L2} = framework_adapter_leases:idle(One, L1),
    {[], L3} = request(2, L2),
    %% The one worker waits for this, and a task without a worker stands before it.
    {[{start, Two, ?KEY, _}], L4} = Nested(1, L3),
    {[{grant, Two, #{task_id := <<"n">>}}], L5} = framework_adapter_leases:idle(Two, L4),
    {[], L6} = Nested(1, L5),
    {[{start, Three, ?KEY, _}], L7} = Nested(2, L6),
    {[{grant, Three, #{depth := 2}}], L8} = framework_adapter_leases:idle(Three, L7),
    %% One level's places are not taken by what is less deep: it waits for its own.
    {[{stop, Three}], L9} = framework_adapter_leases:idle(Three, L8),
    {[], L10} = framework_adapter_leases:ended(Three, normal, L9),
    {[{grant, Two, #{depth := 1}}], L11} = framework_adapter_leases:idle(Two, L10),
    {[{stop, Two}], L12} = framework_adapter_leases:idle(Two, L11),
    {[], L13} = framework_adapter_leases:ended(Two, normal, L12),
    {[{grant, One, #{task_id := <<"2">>}}], L14} = framework_adapter_leases:idle(One, L13),
    ?assertMatch({[], _}, framework_adapter_leases:idle(One, L14)).

an_agent_is_warm_as_far_as_there_is_room_test() ->
    L0 = framework_adapter_leases:new(#{max_per_framework => 3, max_waiting => 10}),
    {[{start, One, ?KEY, agent}, {start, _, ?KEY, agent}], L1} = framework_adapter_leases:warm(?KEY, agent, 2, L0),
    ?assertMatch({[], _}, framework_adapter_leases:warm(?KEY, agent, 2, L1)),
    ?assertMatch({[], _}, framework_adapter_leases:warm(?KEY, agent, 1, L1)),
    Other = {<<"langchain">>, <<"b">>, 1, <<"default">>},
    {[{start, _, Other, agent}], L2} = framework_adapter_leases:warm(Other, agent, 2, L1),
    {[], L3} = framework_adapter_leases:idle(One, L2),
    ?assertMatch({[{grant, One, _}], _}, request(1, L3)).
