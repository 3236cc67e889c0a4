%% @doc Starts and stops the application.
-module(agent_store_app).
-behaviour(application).

-export([start/2, stop/1]).

%% @doc Starts the top supervisor.
-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    agent_store_sup:start_link().

%% @doc Nothing is left to do.
-spec stop(term()) -> ok.
stop(_State) ->
    ok.
