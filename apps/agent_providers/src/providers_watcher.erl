%% @doc Watcher of the providers subsystem.
-module(providers_watcher).
-behaviour(native_subsystem).

-export([start_link/0]).
-export([start/2, stop/1, up/2]).

%% @doc Starts the watcher.
-spec start_link() -> gen_statem:start_ret().
start_link() ->
    native_subsystem:start_link(providers, ?MODULE).

%% @doc Starts the providers.
-spec start(agent_native:runtime(), reference()) -> {ok, reference()} | {error, term()}.
start(Runtime, Ref) ->
    agent_native:providers_start(Runtime, Ref, agent_config:native()).

%% @doc Ends them.
-spec stop(reference()) -> ok | {error, native_down}.
stop(Handle) ->
    agent_native:providers_stop(Handle).

%% @doc A model server that runs already is announced anew, and the ledgers are told whom they lend to.
-spec up(reference(), map()) -> ok.
up(Handle, _Info) ->
    budget_desk:attach(Handle),
    model_server:announce().
