%% @doc Watcher of the gRPC subsystem: started last, drained first.
-module(grpc_listener).
-behaviour(native_subsystem).

%% API
-export([start_link/0]).
-export([drain/0]).
-export([address/0]).

%% native_subsystem
-export([start/2, stop/1, up/2, down/1, needs/0]).

%% @doc Starts the watcher.
-spec start_link() -> gen_statem:start_ret().
start_link() ->
    native_subsystem:start_link(grpc, ?MODULE).

%% @doc Health checks say NOT_SERVING, submits are refused.
-spec drain() -> ok.
drain() ->
    ok = ingress:close(),
    case native_subsystem:handle(grpc) of
        {ok, Grpc} -> _ = agent_native:grpc_drain(Grpc), ok;
        {error, native_down} -> ok
    end.

%% @doc Where the node listens: "127.0.0.1:50151".
-spec address() -> {ok, binary()} | {error, binary()}.
address() ->
    case native_subsystem:info(?MODULE) of
        #{state := up, info := #{address := Address}} -> {ok, Address};
        #{why := Why} -> {error, Why}
    end.

%% @doc Binds and serves; the store and the providers must be up.
-spec start(agent_native:runtime(), reference()) -> {ok, reference()} | {error, term()}.
start(Runtime, Ref) ->
    case {native_subsystem:handle(store), native_subsystem:handle(providers)} of
        {{ok, Store}, {ok, Providers}} ->
            agent_native:grpc_start(Runtime, Ref, agent_config:native(), Store, Providers, whereis(ingress),
                                   ingress:first_credit());
        _ ->
            {error, agent_error:new(store_unavailable, <<"the store and the providers are not up yet">>)}
    end.

%% @doc It holds the handles of both: requests would go on asking a store that has ended.
-spec needs() -> [module()].
needs() ->
    [store_watcher, providers_watcher].

%% @doc Stops serving.
-spec stop(reference()) -> ok | {error, native_down}.
stop(Handle) ->
    agent_native:grpc_stop(Handle).

%% @doc Opens the ingress, and writes the address where the start-up was told to.
-spec up(reference(), map()) -> ok.
up(Handle, #{address := Address}) ->
    ok = ingress:open(Handle),
    case os:getenv("SINGULARITY_ADDRESS_FILE") of
        false ->
            ok;
        File ->
            %% Whole or not at all: others wait for this file.
            ok = file:write_file(File ++ ".new", Address),
            ok = file:rename(File ++ ".new", File)
    end.

%% @doc What it held of the ingress went with it.
-spec down(native_subsystem:name()) -> ok.
down(_) ->
    ingress:shut().
