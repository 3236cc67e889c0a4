%% @doc Watcher of the store subsystem; keeps the epoch of this boot of the store.
-module(store_watcher).
-behaviour(native_subsystem).

-export([start_link/0]).
-export([start/2, stop/1, up/2]).

%% @doc Starts the watcher.
-spec start_link() -> gen_statem:start_ret().
start_link() ->
    native_subsystem:start_link(store, ?MODULE).

%% @doc Opens the store.
-spec start(agent_native:runtime(), reference()) -> {ok, reference()} | {error, term()}.
start(Runtime, Ref) ->
    agent_native:store_start(Runtime, Ref, agent_config:native()).

%% @doc Closes it.
-spec stop(reference()) -> ok | {error, native_down}.
stop(Handle) ->
    agent_native:store_stop(Handle).

%% @doc Publishes the epoch.
-spec up(reference(), map()) -> ok.
up(_Handle, #{epoch := Epoch}) ->
    persistent_term:put({agent_store, epoch}, Epoch).
