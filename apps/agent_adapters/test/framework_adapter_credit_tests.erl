%% @doc Credit between a node and its worker: no window is overrun, and no frame waits for ever.
-module(framework_adapter_credit_tests).

-include_lib("proper/include/proper.hrl").
-undef(LET).
-include_lib("eunit/include/eunit.hrl").

-define(WINDOW_BYTES, 1048576).
-define(MAX_FRAME_BYTES, 16777216).

%% Every frame leaves once the receiver has dealt with those before it, and what it takes is never more than it allowed.
prop_nothing_waits_for_ever() ->
    ?FORALL(Sizes, list(oneof([range(24, 300), range(1000, ?WINDOW_BYTES), range(?WINDOW_BYTES, ?MAX_FRAME_BYTES)])),
            begin
                New = framework_adapter_credit:new(),
                is_tuple(lists:foldl(fun(Size, {Sender, Receiver}) -> sent(Size, Sender, Receiver) end, {New, New}, Sizes))
            end).

sent(Size, Sender, Receiver) ->
    {ok, Sender1} = framework_adapter_credit:take(Size, Sender),
    {ok, Receiver1} = framework_adapter_credit:received(Size, Receiver),
    {Receiver2, Grant} = framework_adapter_credit:consumed(Size, Receiver1),
    case Grant of
        none -> {Sender1, Receiver2};
        {Frames, Bytes} -> {ok, Sender2} = framework_adapter_credit:give(Frames, Bytes, Sender1), {Sender2, Receiver2}
    end.

nothing_waits_for_ever_test_() ->
    {timeout, 60, ?_assert(proper:quickcheck(prop_nothing_waits_for_ever(), [{numtests, 300}, {to_file, user}]))}.

a_sender_without_grants_stops_within_its_window_test() ->
    Fill = fun Fill(N, C) -> case framework_adapter_credit:take(100, C) of {ok, C1} -> Fill(N + 1, C1); wait -> N end end,
    ?assertEqual(64, Fill(0, framework_adapter_credit:new())),
    {ok, Half} = framework_adapter_credit:take(?WINDOW_BYTES div 2, framework_adapter_credit:new()),
    ?assertEqual(wait, framework_adapter_credit:take(?WINDOW_BYTES, Half)).
