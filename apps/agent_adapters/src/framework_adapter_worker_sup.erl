%% @doc Supervisor of the framework workers: temporary children, respawned by the manager.
-module(framework_adapter_worker_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([start_worker/1]).
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Starts a worker process; it opens its guard after it has returned.
-spec start_worker(framework_adapter_worker:spec()) -> {ok, pid()} | {error, term()}.
start_worker(Spec) ->
    case supervisor:start_child(?MODULE, [Spec]) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% Temporary children never restart, so the intensity is never spent: a worker killed every second ends nobody.
%% The shutdown leaves time for TERM, KILL and the proof.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Worker = #{id => framework_adapter_worker, start => {framework_adapter_worker, start_link, []},
               restart => temporary, shutdown => 3000},
    {ok, {#{strategy => simple_one_for_one, intensity => 1, period => 60}, [Worker]}}.
