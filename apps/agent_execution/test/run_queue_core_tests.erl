%% @doc The order in which waiting tasks get their slots.
-module(run_queue_core_tests).

%% Both define LET; neither is used here.
-include_lib("proper/include/proper.hrl").
-undef(LET).
-include_lib("eunit/include/eunit.hrl").

item(Id, Tenant, Priority) ->
    #{task_id => Id, tenant => Tenant, priority => Priority}.

fill(Items) ->
    lists:foldl(fun run_queue_core:push/2, run_queue_core:new(), Items).

drain(Q) ->
    case run_queue_core:pop(Q) of
        empty -> [];
        {Item, Q1} -> [Item | drain(Q1)]
    end.

ids(Prefix, N) ->
    [<<Prefix/binary, (integer_to_binary(I))/binary>> || I <- lists:seq(1, N)].

a_tenant_with_many_tasks_delays_nobody_else_test() ->
    Q = fill([item(Id, <<"big">>, 4) || Id <- ids(<<"b">>, 1000)] ++ [item(Id, <<"small">>, 4) || Id <- ids(<<"s">>, 10)]),
    First = lists:sublist(drain(Q), 60),
    ?assertEqual(10, length([x || #{tenant := <<"small">>} <- First])).

%% One of a hundred asks for a hundred times as much: the others wait hardly longer than if it did not.
a_loud_tenant_doubles_nobodys_wait_test() ->
    Wait = fun(Loud) ->
               Q = fill([item(Id, <<"loud">>, 4) || Id <- ids(<<"l">>, Loud)]
                        ++ [item(Id, Id, 4) || Id <- ids(<<"t">>, 99)]),
               Order = drain(Q),
               length(lists:takewhile(fun(#{tenant := Tenant}) -> Tenant =/= <<"t99">> end, Order))
           end,
    ?assert(Wait(100) =< 2 * Wait(1)).

whoever_comes_while_another_one_fills_the_queue_is_next_test() ->
    Push = fun(Id, Q) -> run_queue_core:push(item(Id, <<"quiet">>, 4), Q) end,
    Loud = fill([item(Id, <<"loud">>, 4) || Id <- ids(<<"l">>, 100)]),
    {_, Q1} = run_queue_core:pop(Loud),
    {_, Q2} = run_queue_core:pop(Push(<<"q1">>, Q1)),
    %% Coming and going gains nothing: every second one at most.
    {#{tenant := Second}, Q3} = run_queue_core:pop(Push(<<"q2">>, Q2)),
    {#{tenant := Third}, _} = run_queue_core:pop(Q3),
    ?assertEqual([<<"loud">>, <<"quiet">>], lists:sort([Second, Third])).

slots_are_shared_by_running_time_not_by_number_test() ->
    Q0 = fill([item(Id, <<"slow">>, 4) || Id <- ids(<<"a">>, 2000)] ++ [item(Id, <<"quick">>, 4) || Id <- ids(<<"b">>, 2000)]),
    Q = lists:foldl(fun(_, Acc) -> run_queue_core:charge(<<"slow">>, 1000, run_queue_core:charge(<<"quick">>, 100, Acc)) end,
                    Q0, lists:seq(1, 50)),
    First = lists:sublist(drain(Q), 550),
    Slow = length([x || #{tenant := <<"slow">>} <- First]),
    ?assert(Slow > 30 andalso Slow < 80).

the_highest_priority_goes_first_and_none_starves_test() ->
    Q = fill([item(Id, <<"t">>, 9) || Id <- ids(<<"h">>, 100)] ++ [item(<<"low">>, <<"t">>, 0)]),
    Order = [Id || #{task_id := Id} <- drain(Q)],
    ?assertEqual(<<"h1">>, hd(Order)),
    %% The oldest of all goes every eighth time: never behind everything.
    Q2 = fill([item(<<"low">>, <<"t">>, 0) | [item(Id, <<"t">>, 9) || Id <- ids(<<"h">>, 100)]]),
    ?assert(lists:member(<<"low">>, [Id || #{task_id := Id} <- lists:sublist(drain(Q2), 8)])).

everything_pushed_and_not_removed_comes_out_once_test() ->
    ?assert(proper:quickcheck(prop_complete(), [{numtests, 300}, {to_file, user}])).

prop_complete() ->
    ?FORALL({Items, Removed}, {list({range(1, 40), range(1, 4), range(0, 9)}), list(range(1, 40))},
            begin
                Q = fill([item(integer_to_binary(I), integer_to_binary(T), P) || {I, T, P} <- Items]),
                Q1 = lists:foldl(fun(I, Acc) ->
                                     case run_queue_core:remove(integer_to_binary(I), Acc) of {_, A} -> A; error -> Acc end
                                 end, Q, Removed),
                Expected = lists:usort([integer_to_binary(I) || {I, _, _} <- Items, not lists:member(I, Removed)]),
                Out = [Id || #{task_id := Id} <- drain(Q1)],
                lists:sort(Out) =:= Expected andalso run_queue_core:size(Q1) =:= length(Expected)
            end).
