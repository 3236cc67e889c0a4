%% @doc The store's watcher, and the owner of its timers.
-module(agent_store_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% one_for_one: the timer asks the store anew at each tick. 20 in 60 s, as for all long-lived children.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([store_watcher, store_timer]),
    Watcher = #{id => store_watcher, start => {store_watcher, start_link, []}, shutdown => 5000},
    Timer = #{id => store_timer, start => {store_timer, start_link, []}, shutdown => 1000},
    {ok, {#{strategy => one_for_one, intensity => 20, period => 60}, [Watcher, Timer]}}.
