%% @doc The application callback: starts the engine's tree.
-module(agent_execution_app).
-behaviour(application).

%% application
-export([start/2, stop/1]).

-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    _ = execution_world:reload(),
    ok = agent_engine:resume(),
    case agent_engine_sup:start_link() of
        {ok, Pid} ->
            ok = agent_registry:warm(),
            {ok, Pid};
        ignore -> {error, ignore};
        {error, Reason} -> {error, Reason}
    end.

-spec stop(term()) -> ok.
stop(_State) ->
    ok.
