#!/usr/bin/env escript
%% -*- erlang -*-
%% Cost of a routing decision: `bench_route.escript RELEASE [CALLS]' prints {"executors", "calls", "p50_us", "p99_us"}.
%%
%% What a task pays is measured: its header in, history and load read from the node's tables, twenty executors of one rule judged, one
%% chosen. The beams are the release's; the tables are filled as after a day of work.
-mode(compile).

-define(EXECUTORS, 20).
-define(BATCH, 50).

main([Release]) -> main([Release, "20000"]);
main([Release, Calls]) ->
    [true = code:add_patha(Dir) || Dir <- filelib:wildcard(filename:join([Release, "lib", "*", "ebin"]))],
    Folder = filename:join("/tmp", "bench-route-" ++ os:getpid()),
    Python = filename:join([Folder, "custom", "bin", "python"]),
    ok = filelib:ensure_dir(Python),
    ok = file:write_file(Python, <<>>),
    try measure(list_to_integer(Calls), unicode:characters_to_binary(Folder)) after file:del_dir_r(Folder) end.

measure(Calls, Folder) ->
    Names = [<<"custom:executor_", (integer_to_binary(N))/binary>> || N <- lists:seq(1, ?EXECUTORS)],
    Framework = #{enabled => true, use_for => [<<"research">>]},
    ok = agent_config:put(#{workers => #{environments => Folder}, frameworks => maps:from_list([{N, Framework} || N <- Names]),
                            agent_execution => #{default_execution_method => <<"native">>, framework_fallback => true,
                                                 exploration_millionths => 20000}}),
    {ok, _} = engine_tables:start_link(),
    _ = execution_world:reload(),
    [execution_history:add(<<"research">>, Name, N rem 7 =/= 0, #{ms => 100 + N, cost => 1000 * N})
     || {At, Name} <- lists:zip(lists:seq(1, ?EXECUTORS), Names), N <- lists:seq(At, At + 20)],
    Header = #{method => auto, framework => <<>>, fallback_frameworks => [], task_type => <<"research">>, tools => [], labels => #{},
               capabilities => [], task_id => <<"0190f0a0-0000-7000-8000-000000000000">>},
    Agent = #{framework => <<"auto">>, tools => [<<"now">>]},
    {ok, #{candidates := All}} = agent_engine:route(Header, Agent),
    true = length([x || #{refused := <<>>} <- All]) >= ?EXECUTORS,
    Batch = fun(_) ->
                {Us, _} = timer:tc(fun() -> repeat(?BATCH, Header, Agent) end),
                Us / ?BATCH
            end,
    %% The first ones warm caches.
    _ = lists:map(Batch, lists:seq(1, 20)),
    Times = lists:sort(lists:map(Batch, lists:seq(1, Calls div ?BATCH))),
    At = fun(Part) -> lists:nth(max(1, trunc(Part * length(Times))), Times) end,
    io:format("{\"executors\": ~b, \"calls\": ~b, \"p50_us\": ~.2f, \"p99_us\": ~.2f}~n", [?EXECUTORS, Calls, At(0.5), At(0.99)]).

repeat(0, _, _) -> ok;
repeat(N, Header, Agent) ->
    {ok, _} = agent_engine:route(Header, Agent),
    repeat(N - 1, Header, Agent).
