%% @doc What the router looks at: configuration (read once) and the state of the executors (read from tables, kept for a
%% moment, since whether an environment is installed is a question to the file system).
-module(execution_world).

-export([get/0]).
-export([config/0]).
-export([reload/0]).

%% How long a look at the executors is good for, in ms.
-define(FRESH_MS, 2000).
-define(CONFIG, {?MODULE, config}).

%% @doc State of the executors.
-spec get() -> execution_router:world().
get() ->
    Now = erlang:monotonic_time(millisecond),
    case ets:lookup(engine_tables:slots(), world) of
        [{world, At, World}] when Now - At < ?FRESH_MS ->
            World;
        _ ->
            World = look(),
            true = ets:insert(engine_tables:slots(), {world, Now, World}),
            World
    end.

-spec look() -> execution_router:world().
look() ->
    Frameworks = [{F, state(F)} || F <- framework_adapter_env:known()],
    (maps:from_list(Frameworks))#{stats => performance_monitor:stats()}.

-spec state(binary()) -> ok | {unavailable, binary()}.
state(Framework) ->
    case framework_adapter_env:available(Framework) of
        ok -> ok;
        {error, #{message := Message}} -> {unavailable, Message}
    end.

%% @doc The router's configuration.
-spec config() -> execution_router:config().
config() ->
    case persistent_term:get(?CONFIG, none) of
        none -> reload();
        Config -> Config
    end.

%% @doc Reads it again (at the start, and in tests).
-spec reload() -> execution_router:config().
reload() ->
    Config = execution_router:config(fun agent_config:get/2),
    persistent_term:put(?CONFIG, Config),
    Config.
