%% @doc The pool of native agents: a process for each running native step and each running plan, under this supervisor.
-module(native_agent_pool).
-behaviour(supervisor).

%% API
-export([start_link/0]).
-export([start_step/1]).
-export([start_child/1]).
-export([spawn_agent/1]).
-export([execute_task/3]).

%% supervisor
-export([init/1]).

%% @doc Starts the pool.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Runs a native step for an owner, which hears of it by message; see {@link native_agent_step}.
-spec start_step(native_agent_step:spec()) -> {ok, pid()} | {error, term()}.
start_step(Spec) ->
    case supervisor:start_child(?MODULE, [Spec]) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, Reason} -> {error, Reason};
        Other -> {error, Other}
    end.

%% @private
-spec start_child(native_agent_step:spec()) -> {ok, pid()} | {error, term()} | ignore.
start_child(#{header := #{has_plan := true}} = Spec) -> plan_driver:start_link(Spec);
start_child(Spec) -> native_agent_step:start_link(Spec).

%% @doc Makes a native agent of a type; gives its id.
-spec spawn_agent(atom() | binary()) -> {ok, binary()} | {error, agent_error:t()}.
spawn_agent(AgentType) ->
    agent_registry:spawn_agent(AgentType, <<"native">>).

%% @doc Runs a task natively and waits for its end.
-spec execute_task(binary() | atom(), term(), map()) -> {ok, map()} | {error, agent_error:t()}.
execute_task(AgentId, Task, Hints) ->
    engine_shell:run(AgentId, Task, Hints#{method => native}).

%% Children are temporary: the coordinator decides what a crash means, the intensity is never spent.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Child = #{id => native_agent_step, start => {?MODULE, start_child, []}, restart => temporary, shutdown => 1000},
    {ok, {#{strategy => simple_one_for_one, intensity => 20, period => 60}, [Child]}}.
