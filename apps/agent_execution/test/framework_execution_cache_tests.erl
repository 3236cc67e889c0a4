%% @doc What the cache of whole answers keeps, and for how long.
-module(framework_execution_cache_tests).

-include_lib("eunit/include/eunit.hrl").

-define(MISS(Key), {miss, Key, [<<"calculate">>]}).

with_cache_test_() ->
    {foreach, fun start/0, fun stop/1,
     [fun(_) -> {"the oldest goes first when the bytes are used up", fun the_oldest_goes_first/0} end,
      fun(_) -> {"an answer over an eighth of the whole is not kept", fun a_large_one_is_not_kept/0} end,
      fun(_) -> {"a refreshed answer outlives the one it replaces", fun a_refreshed_one_stays/0} end]}.

start() ->
    Old = persistent_term:get({agent_core, config}, none),
    ok = agent_config:put(#{task_cache => #{ttl_ms => 60000, max_bytes => 80}}),
    {ok, Tables} = engine_tables:start_link(),
    {ok, Cache} = framework_execution_cache:start_link(),
    {Old, Tables, Cache}.

stop({Old, Tables, Cache}) ->
    ok = gen_server:stop(Cache),
    ok = gen_server:stop(Tables),
    case Old of none -> true = persistent_term:erase({agent_core, config}); _ -> agent_config:put(Old) end.

kept() ->
    %% The writer is done when it answers.
    {error, unknown_call} = gen_server:call(framework_execution_cache, done),
    lists:sort(ets:match(engine_tables:executions(), {'$1', '$2', '_'})).

keep(Key, Result) ->
    framework_execution_cache:keep(Result, ?MISS(Key)).

the_oldest_goes_first() ->
    Ten = <<"0123456789">>,
    _ = [keep(<<N>>, Ten) || N <- lists:seq(1, 10)],
    ?assertEqual([[<<N>>, Ten] || N <- lists:seq(3, 10)], kept()).

a_large_one_is_not_kept() ->
    ok = keep(<<"k">>, <<"01234567890">>),
    ?assertEqual([], kept()).

a_refreshed_one_stays() ->
    ok = keep(<<"k">>, <<"old">>),
    [[<<"k">>, <<"old">>]] = kept(),
    %% Another end: the older entry of the order must not take the newer answer away.
    ok = agent_config:put(#{task_cache => #{ttl_ms => 90000, max_bytes => 24}}),
    ok = keep(<<"k">>, <<"new">>),
    _ = [keep(<<N>>, <<"xyz">>) || N <- lists:seq(1, 6)],
    ?assert(lists:member([<<"k">>, <<"new">>], kept())).

only_harmless_tools_leave_the_ticket_as_it_is_test() ->
    ?assertEqual(?MISS(<<"k">>), framework_execution_cache:tool(<<"calculate">>, ?MISS(<<"k">>))),
    ?assertEqual({effects, <<"now">>}, framework_execution_cache:tool(<<"now">>, ?MISS(<<"k">>))),
    ?assertEqual(none, framework_execution_cache:tool(<<"now">>, none)).
