%% @doc Supervisor of the zygotes, one per environment in use; started by the manager at first use.
-module(framework_adapter_zygote_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([ensure/2]).
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Makes sure that the zygote of an environment exists.
-spec ensure(framework_adapter_lock:env(), pid()) -> {ok, pid()} | {error, term()}.
ensure(#{name := Name} = Env, Manager) ->
    Spec = #{id => Name, start => {framework_adapter_zygote, start_link, [Env, Manager]},
             restart => permanent, shutdown => 2000},
    case supervisor:start_child(?MODULE, Spec) of
        {ok, Pid} -> {ok, Pid};
        {error, {already_started, Pid}} -> {ok, Pid};
        {error, already_present} -> supervisor:restart_child(?MODULE, Name);
        {error, Reason} -> {error, Reason}
    end.

%% Zygotes restart their program themselves; only a fault of the process itself counts here: 20 in 60 s.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    {ok, {#{strategy => one_for_one, intensity => 20, period => 60}, []}}.
