%% @doc Starts and stops the application.
-module(agent_native_app).
-behaviour(application).

-export([start/2, stop/1]).

%% @doc Starts the top supervisor, once the node's configuration is read.
-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    case agent_config:ensure() of
        ok -> agent_native_sup:start_link();
        {error, _} = Error -> Error
    end.

%% @doc Nothing is left to do.
-spec stop(term()) -> ok.
stop(_State) ->
    ok.
