%% @doc The ledgers of the tenants that have budgets, or tasks with limits.
-module(budget_ledger_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([start_ledger/1]).
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Starts a tenant's ledger.
-spec start_ledger(binary()) -> {ok, pid()} | {error, term()}.
start_ledger(Tenant) ->
    case supervisor:start_child(?MODULE, [Tenant]) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        Other -> {error, Other}
    end.

%% Temporary: the next want starts another one, so a store in trouble spends nobody's intensity.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Ledger = #{id => budget_ledger, start => {budget_ledger, start_link, []}, restart => temporary, shutdown => 5000},
    {ok, {#{strategy => simple_one_for_one, intensity => 1, period => 5}, [Ledger]}}.
