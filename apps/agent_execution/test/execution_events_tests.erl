%% @doc How events are batched: the first text at once, the rest together.
-module(execution_events_tests).

-include_lib("eunit/include/eunit.hrl").

the_first_text_goes_at_once_and_the_rest_in_batches_test() ->
    {flush, B1} = execution_events:add({text, <<"a">>}, execution_events:new()),
    {[{text, <<"a">>}], B2} = execution_events:take(B1),
    {later, B3} = execution_events:add({text, <<"b">>}, B2),
    {waits, B4} = execution_events:add({text, <<"c">>}, B3),
    ?assertMatch({[{text, <<"bc">>}], _}, execution_events:take(B4)).

text_and_other_events_keep_their_order_test() ->
    B = lists:foldl(fun(E, Acc) -> {_, A} = execution_events:add(E, Acc), A end, execution_events:new(),
                    [{text, <<"a">>}, {tool_call, #{}}, {text, <<"b">>}, {text, <<"c">>}]),
    ?assertMatch({[{text, <<"a">>}, {tool_call, #{}}, {text, <<"bc">>}], _}, execution_events:take(B)).

a_batch_is_bounded_test() ->
    {_, B1} = execution_events:take(element(2, execution_events:add({text, <<"x">>}, execution_events:new()))),
    {later, B2} = execution_events:add({text, binary:copy(<<"y">>, 4000)}, B1),
    ?assertMatch({flush, _}, execution_events:add({text, binary:copy(<<"y">>, 200)}, B2)).
