%% @doc Events are acknowledged at a bounded rate, and none is forgotten.
-module(framework_adapter_pace_tests).

-include_lib("eunit/include/eunit.hrl").

-define(PER_SLOT, 100).

events_beyond_the_slot_are_acknowledged_in_the_next_one_test() ->
    Full = lists:foldl(fun(_, P) -> {now, P1} = framework_adapter_pace:event(10, P), P1 end, framework_adapter_pace:new(),
                       lists:seq(1, ?PER_SLOT)),
    {later, P2} = framework_adapter_pace:event(7, Full),
    {later, P3} = framework_adapter_pace:event(8, P2),
    {Sizes, P4} = framework_adapter_pace:turn(P3),
    ?assertEqual([7, 8], lists:sort(Sizes)),
    %% They count in the slot that acknowledges them.
    Rest = lists:foldl(fun(_, P) -> {now, P1} = framework_adapter_pace:event(1, P), P1 end, P4, lists:seq(1, ?PER_SLOT - 2)),
    ?assertMatch({later, _}, framework_adapter_pace:event(1, Rest)).

the_clock_runs_only_while_events_come_test() ->
    ?assertEqual(none, framework_adapter_pace:clock(framework_adapter_pace:new())),
    {now, P} = framework_adapter_pace:event(1, framework_adapter_pace:new()),
    {start, _, Running} = framework_adapter_pace:clock(P),
    ?assertEqual(none, framework_adapter_pace:clock(Running)),
    {[], Idle} = framework_adapter_pace:turn(Running),
    ?assertEqual(none, framework_adapter_pace:clock(Idle)).

lines_are_dropped_where_the_slot_is_full_test() ->
    Full = lists:foldl(fun(_, P) -> {taken, P1} = framework_adapter_pace:line(P), P1 end, framework_adapter_pace:new(),
                       lists:seq(1, ?PER_SLOT)),
    ?assertEqual(dropped, framework_adapter_pace:line(Full)).
