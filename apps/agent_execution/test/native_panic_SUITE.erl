%% @doc A panic in each Rust subsystem, a library of another version, and no library at all: the node lives.
%%
%% Each case has a node of its own: fault injection is allowed by an environment variable of the operating system's process.
-module(native_panic_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-export([all/0]).
-export([a_panic_of_the_store_restarts_it_and_other_work_goes_on/1, a_panic_of_the_providers_restarts_them/1,
         without_permission_nothing_panics/1, a_request_of_a_stopped_runtime_gets_its_one_answer/1,
         without_the_library_the_applications_still_start/1, a_library_of_another_version_is_refused/1]).

all() ->
    [a_panic_of_the_store_restarts_it_and_other_work_goes_on, a_panic_of_the_providers_restarts_them,
     without_permission_nothing_panics, a_request_of_a_stopped_runtime_gets_its_one_answer,
     without_the_library_the_applications_still_start, a_library_of_another_version_is_refused].

with_node(Case, Config, Env, Fun) ->
    Dir = filename:join(?config(priv_dir, Config), atom_to_list(Case)),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Paths = lists:append([["-pa", P] || P <- code:get_path(), filelib:is_dir(P)]),
    {ok, Peer, _} = peer:start_link(#{connection => standard_io, env => Env, args => Paths}),
    try Fun(Peer, Dir) after peer:stop(Peer) end.

call(Peer, M, F, A) ->
    peer:call(Peer, M, F, A, 30000).

works(Peer) ->
    {ok, Id} = call(Peer, engine_test_node, submit, [#{}]),
    ?assertMatch(#{state := succeeded}, call(Peer, engine_test_node, until_ended, [Id])).

panics(Subsystem, Watcher, Panic, Case, Config) ->
    with_node(Case, Config, [{"AGENT_FAULT_INJECTION", "1"}], fun(Peer, Dir) ->
        ok = call(Peer, engine_test_node, start, [Dir]),
        works(Peer),
        Before = call(Peer, erlang, whereis, [Watcher]),
        {ok, Handle} = call(Peer, native_subsystem, handle, [Subsystem]),
        ok = call(Peer, agent_native, Panic, [Handle]),
        engine_test_node:eventually(fun() ->
            After = call(Peer, erlang, whereis, [Watcher]),
            is_pid(After) andalso After =/= Before andalso call(Peer, native_subsystem, await, [Watcher, 10000]) =:= ok
        end),
        works(Peer)
    end).

a_panic_of_the_store_restarts_it_and_other_work_goes_on(Config) ->
    panics(store, store_watcher, store_panic, ?FUNCTION_NAME, Config).

a_panic_of_the_providers_restarts_them(Config) ->
    panics(providers, providers_watcher, providers_panic, ?FUNCTION_NAME, Config).

without_permission_nothing_panics(Config) ->
    with_node(?FUNCTION_NAME, Config, [], fun(Peer, Dir) ->
        ok = call(Peer, engine_test_node, start, [Dir]),
        {ok, Handle} = call(Peer, native_subsystem, handle, [store]),
        ?assertEqual(error, call(Peer, agent_native, store_panic, [Handle])),
        works(Peer)
    end).

%% One final message, whatever happens to the runtime.
a_request_of_a_stopped_runtime_gets_its_one_answer(_Config) ->
    {ok, Runtime} = agent_native:runtime_start(#{}),
    Native = <<"{\"providers\":{\"echo\":{\"dialect\":\"echo\"}}}">>,
    Ref = make_ref(),
    {ok, Providers} = agent_native:providers_start(Runtime, Ref, Native),
    receive {agent_native, Ref, ready, _} -> ok after 5000 -> error(not_ready) end,
    Call = make_ref(),
    %% model = "echo?latency=60000ms", field 1 of a ChatRequest.
    Model = <<"echo?latency=60000ms">>,
    ok = agent_native:chat(Providers, Call, <<10, (byte_size(Model)), Model/binary>>, #{stream => false, credit => 1}),
    ok = agent_native:runtime_stop(Runtime),
    receive {agent_native, Call, error, #{reason := _}} -> ok after 5000 -> error(no_answer) end,
    receive {agent_native, Call, _, _} -> error(second_answer) after 200 -> ok end,
    ?assertEqual({error, native_down}, agent_native:chat(Providers, make_ref(), <<>>, #{})).

without_the_library_the_applications_still_start(Config) ->
    with_node(?FUNCTION_NAME, Config, [{"AGENT_SKIP_NIF", "1"}], fun(Peer, _Dir) ->
        ok = call(Peer, agent_config, put, [#{}]),
        {ok, _} = call(Peer, application, ensure_all_started, [agent_store]),
        ?assertEqual({error, native_down}, call(Peer, native_runtime, runtime, [])),
        ?assertMatch({error, #{reason := store_unavailable}}, call(Peer, agent_store, read, [{running, any}]))
    end).

a_library_of_another_version_is_refused(Config) ->
    Source = proplists:get_value(source, agent_native:module_info(compile)),
    {ok, agent_native, Beam} = compile:file(Source, [binary, {d, 'ABI', 99}]),
    with_node(?FUNCTION_NAME, Config, [], fun(Peer, _Dir) ->
        ?assertEqual({error, on_load_failure}, call(Peer, code, load_binary, [agent_native, "agent_native.beam", Beam]))
    end).
