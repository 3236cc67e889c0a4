%% @doc Supervisor of the coordinators, one per task under way. They are temporary: a coordinator that crashed is answered
%% by {@link task_recovery}, which closes its attempt and queues the task again.
-module(execution_coordinator_sup).
-behaviour(supervisor).

%% API
-export([start_link/0]).
-export([start_coordinator/1]).
-export([count/0]).

%% supervisor
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Starts a coordinator; it does its work after this has returned.
-spec start_coordinator(execution_coordinator:start()) -> {ok, pid()} | {error, term()}.
start_coordinator(Start) ->
    case supervisor:start_child(?MODULE, [Start]) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, Reason} -> {error, Reason};
        Other -> {error, Other}
    end.

%% @doc Coordinators alive.
-spec count() -> non_neg_integer().
count() ->
    proplists:get_value(active, supervisor:count_children(?MODULE), 0).

%% Children are temporary: the intensity is never spent.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Child = #{id => execution_coordinator, start => {execution_coordinator, start_link, []}, restart => temporary,
              shutdown => 2000},
    {ok, {#{strategy => simple_one_for_one, intensity => 20, period => 60}, [Child]}}.
