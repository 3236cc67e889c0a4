%% @doc What a worker's end is called, by what its guard has said.
-module(framework_adapter_report_tests).

-include_lib("eunit/include/eunit.hrl").

each_limit_has_a_reason_of_its_own_test() ->
    Cause = fun(Messages) -> framework_adapter_report:cause(report(Messages)) end,
    ?assertEqual(worker_crashed, Cause([])),
    ?assertEqual(worker_oom, Cause([{limit, max_memory, 2, 1}])),
    ?assertEqual(worker_process_limit, Cause([{limit, max_processes, 2, 1}, exited()])).

stacks_come_in_pieces_and_are_no_part_of_a_status_test() ->
    Report = report([{stack, <<"one ">>}, {stack, <<"two">>}, exited()]),
    Lost = framework_adapter_report:lost({worker_hung, ["no ", "beat"]}, descendants, 42, [<<"b">>, <<"a">>], Report),
    ?assertMatch(#{cause := worker_hung, detail := <<"no beat">>, stack := <<"one two">>, log := [<<"a">>, <<"b">>],
                   host_pid := 42, peak_rss := 1024, cpu_ms := 7, proof := descendants}, Lost),
    Shown = framework_adapter_report:lost({worker_hung, ""}, descendants, 42, [], framework_adapter_report:format(Report)),
    ?assertMatch(#{stack := <<>>}, Shown).

the_proof_is_the_guards_test() ->
    ?assertEqual(error, framework_adapter_report:proof(report([exited()]))),
    Gone = #{proof => namespace, survivors => []},
    ?assertEqual({ok, Gone}, framework_adapter_report:proof(report([{gone, Gone}]))).

exited() ->
    {exited, #{kind => code, value => 1, peak_rss => 1024, cpu_ms => 7}}.

report(Messages) ->
    lists:foldl(fun framework_adapter_report:add/2, framework_adapter_report:new(), Messages).
