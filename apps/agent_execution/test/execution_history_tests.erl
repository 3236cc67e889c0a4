%% @doc What is kept of ended tasks, how it fades, and how it comes back.
-module(execution_history_tests).

-include_lib("eunit/include/eunit.hrl").

history_test_() ->
    {foreach, fun start/0, fun stop/1,
     [fun ends_are_counted/0, fun ends_fade_and_are_forgotten/0, fun what_is_exported_comes_back/0, fun a_spoilt_file_is_left_out/0,
      fun ends_that_say_nothing_are_not_counted/0]}.

start() ->
    Dir = filename:join("/tmp", "history-" ++ integer_to_list(erlang:unique_integer([positive])) ++ "-" ++ os:getpid()),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    ok = agent_config:put(#{server => #{data_dir => list_to_binary(Dir)}}),
    {ok, Pid} = engine_tables:start_link(),
    {Pid, Dir}.

stop({Pid, Dir}) ->
    unlink(Pid),
    ok = gen_server:stop(Pid),
    agent_config:put(#{}),
    file:del_dir_r(Dir).

add(Type, Executor, Well) -> execution_history:add(Type, Executor, Well, #{ms => 100, cost => 50}).

ends_are_counted() ->
    [add(<<"research">>, <<"langchain">>, N > 1) || N <- lists:seq(1, 4)],
    ok = execution_history:add(<<"research">>, <<"native">>, true, #{ms => 10, cost => unknown}),
    ?assert(execution_history:knows(<<"research">>)),
    ?assertNot(execution_history:knows(<<"resea">>)),
    ?assertEqual(#{<<"langchain">> => #{samples => 4.0, success => 0.75, ms => 100.0, cost => 50.0},
                   <<"native">> => #{samples => 1.0, success => 1.0, ms => 10.0, cost => unknown}},
                 execution_history:of_type(<<"research">>)).

ends_fade_and_are_forgotten() ->
    [add(<<"research">>, <<"langchain">>, true) || _ <- lists:seq(1, 8)],
    ok = execution_history:fade(0.5),
    #{<<"langchain">> := #{samples := N, ms := Ms}} = execution_history:of_type(<<"research">>),
    ?assert(abs(N - 4.0) < 0.01 andalso abs(Ms - 100.0) < 1.0),
    [execution_history:fade(0.5) || _ <- lists:seq(1, 8)],
    ?assertNot(execution_history:knows(<<"research">>)).

what_is_exported_comes_back() ->
    [add(<<"research">>, <<"langchain">>, true) || _ <- lists:seq(1, 8)],
    Known = execution_history:of_type(<<"research">>),
    ok = execution_history_file:save(),
    ok = execution_history:fade(0.0),
    ?assertEqual(#{}, execution_history:of_type(<<"research">>)),
    ok = execution_history_file:load(),
    ?assertEqual(Known, execution_history:of_type(<<"research">>)).

a_spoilt_file_is_left_out() ->
    File = filename:join(agent_config:get([server, data_dir], <<>>), "routing.history"),
    Sealed = fun(Term) -> Bytes = term_to_binary(Term), <<(erlang:crc32(Bytes)):32, Bytes/binary>> end,
    [begin
         ok = file:write_file(File, Bytes),
         ok = execution_history_file:load(),
         ?assertEqual([], execution_history:export())
     end || Bytes <- [<<>>, <<"none of it">>, <<0:32, (term_to_binary({1, []}))/binary>>, Sealed({1, [{{a, b}, [1]}]}), Sealed({2, []})]].

ends_that_say_nothing_are_not_counted() ->
    Header = #{task_type => <<"research">>},
    Used = #{ms => 1, cost => unknown},
    Failed = fun(Reason) -> #{state => failed, error => #{reason => Reason}} end,
    [execution_learned:ended(Header, <<"native">>, End, Used)
     || End <- [Failed(provider_unavailable), Failed(budget_exhausted), Failed(invalid_field), #{state => cancelled}]],
    ?assertNot(execution_history:knows(<<"research">>)),
    ok = execution_learned:ended(Header, <<"native">>, Failed(framework_error), Used),
    ?assertMatch(#{<<"native">> := #{success := 0.0}}, execution_history:of_type(<<"research">>)).
