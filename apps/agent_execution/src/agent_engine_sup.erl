%% @doc The AgentExecutionEngine: top of the engine's tree.
%%
%% `rest_for_one', in the order of dependency: the tables outlive all, coordinators need the registry, the queue and the
%% pools, and the recovery looks at coordinators. A crash of a coordinator touches nothing here.
-module(agent_engine_sup).
-behaviour(supervisor).

%% API
-export([start_link/0]).

%% supervisor
-export([init/1]).

%% @doc Starts the engine.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% 20 in 60 s: supervisor of long-lived children; per-task processes are temporary and never spend it.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([engine_tables, engine_services_sup, agent_execution_supervisor, execution_coordinator_sup,
                        task_recovery]),
    Worker = fun(Id) -> #{id => Id, start => {Id, start_link, []}, shutdown => 5000} end,
    Sup = fun(Id) -> #{id => Id, start => {Id, start_link, []}, type => supervisor, shutdown => infinity} end,
    {ok, {#{strategy => rest_for_one, intensity => 20, period => 60},
          [Worker(engine_tables), Sup(engine_services_sup), Sup(agent_execution_supervisor),
           Sup(execution_coordinator_sup), Worker(task_recovery)]}}.
