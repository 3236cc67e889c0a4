%% @doc The providers' watcher, the embedded model's server, and the ledgers of the budgets.
-module(agent_providers_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% rest_for_one: the model server announces its port to the providers, so it starts again after them; the ledgers lend to their calls,
%% and end before them, while it is still known what those have spent. 20 in 60 s.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([providers_watcher, model_server]),
    Watcher = #{id => providers_watcher, start => {providers_watcher, start_link, []}, shutdown => 5000},
    Model = #{id => model_server, start => {model_server, start_link, []}, shutdown => 3000},
    Ledgers = #{id => budget_ledger_sup, start => {budget_ledger_sup, start_link, []}, type => supervisor, shutdown => infinity},
    Desk = #{id => budget_desk, start => {budget_desk, start_link, []}, shutdown => 5000},
    {ok, {#{strategy => rest_for_one, intensity => 20, period => 60}, [Watcher, Model, Ledgers, Desk]}}.
