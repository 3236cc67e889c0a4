%% @doc Watcher of the HTTP subsystem: the door for programs that speak OpenAI's or Anthropic's wire.
-module(http_listener).
-behaviour(native_subsystem).

%% API
-export([start_link/0]).
-export([wanted/0]).
-export([drain/0]).
-export([address/0]).

%% native_subsystem
-export([start/2, stop/1, needs/0]).

%% @doc Starts the watcher.
-spec start_link() -> gen_statem:start_ret().
start_link() ->
    native_subsystem:start_link(http, ?MODULE).

%% @doc Whether the configuration asks for it.
-spec wanted() -> boolean().
wanted() ->
    agent_config:get([server, http_address], <<"off">>) =/= <<"off">>.

%% @doc Takes nothing more, and is not started again; answers under way are finished.
-spec drain() -> ok.
drain() ->
    _ = supervisor:terminate_child(agent_gateway_sup, ?MODULE),
    ok.

%% @doc Where it listens: "127.0.0.1:50152".
-spec address() -> {ok, binary()} | {error, binary()}.
address() ->
    case wanted() andalso native_subsystem:info(?MODULE) of
        #{state := up, info := #{address := Address}} -> {ok, Address};
        #{why := Why} -> {error, Why};
        false -> {error, <<"[server] http_address is off">>}
    end.

%% @doc Binds and serves; the providers must be up.
-spec start(agent_native:runtime(), reference()) -> {ok, reference()} | {error, term()}.
start(Runtime, Ref) ->
    case native_subsystem:handle(providers) of
        {ok, Providers} -> agent_native:http_start(Runtime, Ref, agent_config:native(), Providers);
        {error, native_down} -> {error, agent_error:new(store_unavailable, <<"the providers are not up yet">>)}
    end.

%% @doc It holds their handle.
-spec needs() -> [module()].
needs() ->
    [providers_watcher].

%% @doc Stops serving; answers under way are finished.
-spec stop(reference()) -> ok | {error, native_down}.
stop(Handle) ->
    agent_native:http_stop(Handle).
