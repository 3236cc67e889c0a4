%% @doc Registry, run queue, schedule owner and cache of whole answers: they do not need each other, so one may crash beside the others.
-module(engine_services_sup).
-behaviour(supervisor).

%% API
-export([start_link/0]).

%% supervisor
-export([init/1]).

%% @doc Starts the services.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% 20 in 60 s: long-lived children. Beyond it the engine's own supervisor starts everything after the tables again.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([agent_registry, run_queue, schedule_owner, framework_execution_cache]),
    Worker = fun(Id) -> #{id => Id, start => {Id, start_link, []}, shutdown => 5000} end,
    {ok, {#{strategy => one_for_one, intensity => 20, period => 60},
          [Worker(agent_registry), Worker(run_queue), Worker(schedule_owner), Worker(framework_execution_cache)]}}.
