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

%% The lease that an effect grants.
granted({grant, _, #{ref := Ref}}) -> Ref.

what_is_deeper_has_more_workers_and_goes_first_test() ->
    Nested = fun(Depth, L) -> framework_adapter_leases:request(?KEY, #{ref => make_ref(), owner => self(), task_id => <<"n">>,
                                                                       agent => #{}, depth => Depth}, L) end,
    {[{start, One, ?KEY, _}], L1} = request(1, new()),
    {[{grant, One, _} = First], L2} = framework_adapter_leases:ready(One, L1),
    {[], L3} = request(2, L2),
    %% The one worker waits for this, and a task without a worker stands before it.
    {[{start, Two, ?KEY, _}], L4} = Nested(1, L3),
    {[{grant, Two, #{task_id := <<"n">>}} = Second], L5} = framework_adapter_leases:ready(Two, L4),
    {[], L6} = Nested(1, L5),
    {[{start, Three, ?KEY, _}], L7} = Nested(2, L6),
    {[{grant, Three, #{depth := 2}} = Third], L8} = framework_adapter_leases:ready(Three, L7),
    %% One level's places are not taken by what is less deep: it waits for its own.
    {[{stop, Three}], L9} = framework_adapter_leases:released(Three, granted(Third), L8),
    {[], L10} = framework_adapter_leases:ended(Three, normal, L9),
    {[{grant, Two, #{depth := 1}} = Fourth], L11} = framework_adapter_leases:released(Two, granted(Second), L10),
    {[{stop, Two}], L12} = framework_adapter_leases:released(Two, granted(Fourth), L11),
    {[], L13} = framework_adapter_leases:ended(Two, normal, L12),
    {[{grant, One, #{task_id := <<"2">>}} = Last], L14} = framework_adapter_leases:released(One, granted(First), L13),
    ?assertMatch({[], _}, framework_adapter_leases:released(One, granted(Last), L14)).

an_agent_is_warm_as_far_as_there_is_room_test() ->
    L0 = framework_adapter_leases:new(#{max_per_framework => 3, max_waiting => 10}),
    {[{start, One, ?KEY, #{}}, {start, _, ?KEY, #{}}], L1} = framework_adapter_leases:warm(?KEY, #{}, 2, L0),
    ?assertMatch({[], _}, framework_adapter_leases:warm(?KEY, #{}, 2, L1)),
    ?assertMatch({[], _}, framework_adapter_leases:warm(?KEY, #{}, 1, L1)),
    Other = {<<"langchain">>, <<"b">>, 1, <<"default">>},
    {[{start, _, Other, #{}}], L2} = framework_adapter_leases:warm(Other, #{}, 2, L1),
    {[], L3} = framework_adapter_leases:ready(One, L2),
    ?assertMatch({[{grant, One, _}], _}, request(1, L3)).

%% ---- several tasks in one worker

-define(OTHER, {<<"langchain">>, <<"b">>, 1, <<"default">>}).

ask(Key, More, L) ->
    Request = maps:merge(#{ref => make_ref(), owner => self(), task_id => <<"t">>, agent => #{concurrency => 3}}, More),
    framework_adapter_leases:request(Key, Request, L).

a_worker_takes_as_many_tasks_as_it_has_slots_test() ->
    {[{start, One, ?KEY, _}], L1} = ask(?KEY, #{}, new()),
    {[], L2} = ask(?KEY, #{}, L1),
    {[{grant, One, _} = First, {grant, One, _}], L3} = framework_adapter_leases:ready(One, L2),
    {[{grant, One, _}], L4} = ask(?KEY, #{}, L3),
    {[], L5} = ask(?KEY, #{task_id => <<"fourth">>}, L4),
    {[{grant, One, #{task_id := <<"fourth">>}}], L6} = framework_adapter_leases:released(One, granted(First), L5),
    ?assertMatch([{One, ?KEY, leased}], framework_adapter_leases:workers(L6)),
    ?assertEqual(0, framework_adapter_leases:waiting(L6)).

an_idle_worker_goes_before_a_busy_one_test() ->
    L0 = framework_adapter_leases:new(#{max_per_framework => 2, max_waiting => 10}),
    {[{start, One, _, _}, {start, Two, _, _}], L1} = framework_adapter_leases:warm(?KEY, #{concurrency => 3}, 2, L0),
    {[], L2} = framework_adapter_leases:ready(One, L1),
    {[], L3} = framework_adapter_leases:ready(Two, L2),
    {[{grant, A, _}], L4} = ask(?KEY, #{}, L3),
    {[{grant, B, _}], L5} = ask(?KEY, #{}, L4),
    ?assertEqual(lists:sort([One, Two]), lists:sort([A, B])),
    ?assertMatch({[{grant, _, _}], _}, ask(?KEY, #{}, L5)).

one_that_wants_to_be_alone_has_a_worker_of_its_own_for_as_long_as_it_runs_test() ->
    {[{start, One, _, _}], L1} = ask(?KEY, #{}, new()),
    {[{grant, One, _}], L2} = framework_adapter_leases:ready(One, L1),
    %% It may have one beyond the maximum, and holds nobody up for longer than the start of that.
    {[{start, Two, _, _}], L3} = ask(?KEY, #{alone => true}, L2),
    {[], L4} = ask(?KEY, #{task_id => <<"behind">>}, L3),
    {[{grant, Two, #{alone := true}} = Alone, {grant, One, #{task_id := <<"behind">>}}], L5} = framework_adapter_leases:ready(Two, L4),
    {[{grant, One, _}], L6} = ask(?KEY, #{}, L5),
    ?assertMatch({[{stop, Two}], _}, framework_adapter_leases:released(Two, granted(Alone), L6)).

an_idle_worker_is_given_whole_to_one_that_wants_to_be_alone_test() ->
    {[{start, One, _, _}], L1} = framework_adapter_leases:warm(?KEY, #{concurrency => 3}, 1, new()),
    {[], L2} = framework_adapter_leases:ready(One, L1),
    {[{grant, One, _} = Alone], L3} = ask(?KEY, #{alone => true}, L2),
    {[], L4} = ask(?KEY, #{}, L3),
    {[], L5} = ask(?KEY, #{}, L4),
    ?assertMatch({[{grant, One, _}, {grant, One, _}], _}, framework_adapter_leases:released(One, granted(Alone), L5)).

one_that_retires_takes_no_more_and_another_one_is_started_meanwhile_test() ->
    {[{start, One, _, _}], L1} = ask(?KEY, #{}, new()),
    {[{grant, One, _} = First], L2} = framework_adapter_leases:ready(One, L1),
    %% Its last task may be long.
    {[{start, Two, ?KEY, _}], L3} = ask(?KEY, #{}, framework_adapter_leases:retiring(One, L2)),
    {[{grant, Two, _}], L4} = framework_adapter_leases:ready(Two, L3),
    {[], L5} = framework_adapter_leases:released(One, granted(First), L4),
    ?assertMatch({[], _}, framework_adapter_leases:ended(One, normal, L5)).

what_is_taken_back_leaves_its_place_to_the_next_one_test() ->
    {[{start, One, _, _}], L1} = ask(?KEY, #{}, new()),
    {[{grant, One, _}], L2} = framework_adapter_leases:ready(One, L1),
    Ref = make_ref(),
    {[{start, _, _, _}], L3} = ask(?KEY, #{alone => true, ref => Ref}, L2),
    {[], L4} = ask(?KEY, #{task_id => <<"behind">>}, L3),
    ?assertMatch({[{grant, One, #{task_id := <<"behind">>}}], _}, framework_adapter_leases:cancel(Ref, L4)).

%% What was passed over and then taken back keeps nobody from anything.
a_key_that_waits_no_more_is_forgotten_test() ->
    {[{start, One, _, _}], L1} = request(1, new()),
    {[{grant, One, _} = First], L2} = framework_adapter_leases:ready(One, L1),
    Ref = make_ref(),
    {[], L3} = ask(?OTHER, #{ref => Ref}, L2),
    Turn = fun(N, {Granted, L}) ->
               {[], Asked} = request(N, L),
               {[Next | _], Left} = framework_adapter_leases:released(One, granted(Granted), Asked),
               {Next, Left}
           end,
    {Last, L4} = lists:foldl(Turn, {First, L3}, lists:seq(1, 16)),
    {[], L5} = framework_adapter_leases:cancel(Ref, L4),
    {[], L6} = framework_adapter_leases:released(One, granted(Last), L5),
    ?assertMatch({[{grant, One, _}], _}, request(99, L6)).

%% Whoever always finds a free slot is counted too.
a_slot_that_is_always_free_is_no_way_round_it_test() ->
    {[{start, One, _, _}], L1} = ask(?KEY, #{}, new()),
    {[{grant, One, _} = First], L2} = framework_adapter_leases:ready(One, L1),
    {[], L3} = ask(?OTHER, #{}, L2),
    Turn = fun Turn(N, Granted, L) when N < 100 ->
                   {[Next], Asked} = ask(?KEY, #{}, L),
                   case framework_adapter_leases:released(One, granted(Granted), Asked) of
                       {[], Left} -> Turn(N + 1, Next, Left);
                       {[{retire, One}], _} -> N
                   end
           end,
    ?assert(Turn(0, First, L3) =< 16).

%% A flood of one agent's tasks leaves room for another agent's within a bounded number of them.
a_key_without_a_worker_is_not_passed_over_for_ever_test() ->
    {[{start, One, _, _}], L1} = request(1, new()),
    {[{grant, One, _} = First], L2} = framework_adapter_leases:ready(One, L1),
    Flood = lists:foldl(fun(N, L) -> {[], More} = request(N, L), More end, L2, lists:seq(1, 9)),
    {[], Asked} = ask(?OTHER, #{}, Flood),
    Until = fun Until(Granted, L, N) when N < 100 ->
                    {Effects, L9} = framework_adapter_leases:released(One, granted(Granted), L),
                    case Effects of
                        [{grant, One, _} = Next] ->
                            {[], Refilled} = request(N, L9),
                            Until(Next, Refilled, N + 1);
                        [{stop, One}] ->
                            {N, L9}
                    end
            end,
    {Passed, Stopping} = Until(First, Asked, 0),
    ?assert(Passed =< 16),
    ?assertMatch({[{start, _, ?OTHER, _}], _}, framework_adapter_leases:ended(One, normal, Stopping)).
