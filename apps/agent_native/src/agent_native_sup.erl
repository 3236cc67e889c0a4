%% @doc Top of the native side: the runtime first, then what announces it.
-module(agent_native_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% rest_for_one: what stands below needs the runtime. 20 in 60 s: a library that dies more often is broken, not unlucky.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([native_runtime]),
    Runtime = #{id => native_runtime, start => {native_runtime, start_link, []}, shutdown => 5000},
    {ok, {#{strategy => rest_for_one, intensity => 20, period => 60}, [Runtime]}}.
