%% @doc Starts and stops the front door; on a stop it drains first.
-module(agent_gateway_app).
-behaviour(application).

-export([start/2, prep_stop/1, stop/1]).

%% Time that running tasks get at a stop, in ms; `[server] drain_timeout'.
-define(DRAIN_TIMEOUT_MS, 30000).

%% @doc Starts the top supervisor.
-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    agent_gateway_sup:start_link().

%% @doc SIGTERM: refuse new tasks, let running ones end; what does not end is queued again at the next start.
-spec prep_stop(State) -> State when State :: term().
prep_stop(State) ->
    ok = http_listener:drain(),
    _ = [grpc_listener:drain() || whereis(grpc_listener) =/= undefined],
    ok = agent_engine:drain(agent_config:get([server, drain_timeout_ms], ?DRAIN_TIMEOUT_MS)),
    State.

%% @doc Nothing is left to do.
-spec stop(term()) -> ok.
stop(_State) ->
    ok.
