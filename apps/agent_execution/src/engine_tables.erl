%% @doc Owner of the engine's tables: it does nothing else, so that no crash beside it loses them.
%%
%% `tasks': a row per live task (`execution_row.hrl'), written by its coordinator. `slots': counters of running and
%% queued tasks by class and tenant, see {@link run_queue}. `agents': definitions, written by {@link agent_registry}.
%% `performance' and `history': counters, written by whoever measures.
-module(engine_tables).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([tasks/0]).
-export([slots/0]).
-export([agents/0]).
-export([performance/0]).
-export([history/0]).
-export([executions/0]).
-export([families/0]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, format_status/1]).

%% @doc Starts the owner.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Name of the table of live tasks.
-spec tasks() -> atom().
tasks() -> engine_tasks.

%% @doc Name of the table of slot counters.
-spec slots() -> atom().
slots() -> engine_slots.

%% @doc Name of the table of agents.
-spec agents() -> atom().
agents() -> engine_agents.

%% @doc Name of the table of measurements.
-spec performance() -> atom().
performance() -> engine_performance.

%% @doc Name of the table of {@link execution_history}.
-spec history() -> atom().
history() -> engine_history.

%% @doc Name of the table of whole answers, see {@link framework_execution_cache}.
-spec executions() -> atom().
executions() -> engine_executions.

%% @doc Name of the table of children of live tasks, see {@link execution_family}.
-spec families() -> atom().
families() -> engine_families.

-spec init([]) -> {ok, none}.
init([]) ->
    Table = fun(Name, Options) -> Name = ets:new(Name, [named_table, public, {read_concurrency, true} | Options]) end,
    _ = Table(tasks(), [{keypos, 2}, {write_concurrency, true}]),
    _ = Table(slots(), [{write_concurrency, true}]),
    _ = Table(agents(), []),
    _ = Table(performance(), [{write_concurrency, true}]),
    _ = Table(history(), [ordered_set]),
    _ = Table(executions(), []),
    _ = Table(families(), [bag, {write_concurrency, true}]),
    {ok, none}.

-spec handle_call(term(), gen_server:from(), none) -> {reply, {error, unknown_call}, none}.
handle_call(_, _From, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast(term(), none) -> {noreply, none}.
handle_cast(_, State) ->
    {noreply, State}.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.
