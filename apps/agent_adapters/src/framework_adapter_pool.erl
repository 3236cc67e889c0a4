%% @doc The pool of framework workers: supervisor of zygotes, workers and their manager, and the pool's public functions.
%%
%% `rest_for_one' in the order manager, zygotes, workers: what the manager leased must not outlive its books. Its view
%% table belongs to this supervisor, so that views survive a crash of the manager.
-module(framework_adapter_pool).
-behaviour(supervisor).

%% API
-export([start_link/0]).
-export([lease/1]).
-export([cancel_lease/1]).
-export([workers/0]).
-export([frameworks/0]).
-export([framework/1]).
-export([usable/1]).
-export([restart_workers/1]).
-export([attach/1]).
-export([table/0]).
-export([set_engine/1]).
-export([spawn_agent/2]).
-export([execute_task/4]).

%% supervisor
-export([init/1]).

%% @doc Starts the pool.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc See `docs/internal_api.md'.
-spec lease(map()) -> {ok, reference()}.
lease(Request) ->
    framework_adapter_manager:lease(Request).

%% @doc See `docs/internal_api.md'.
-spec cancel_lease(reference()) -> ok.
cancel_lease(Ref) ->
    framework_adapter_manager:cancel_lease(Ref).

%% @doc Every worker: `#{worker, framework, agent_id, state, task_id, host_pid, rss_bytes, started_ms, isolation}'.
-spec workers() -> [map()].
workers() ->
    [View || {Id, View} <- ets:tab2list(?MODULE), is_binary(Id)].

%% @doc Every framework with an adapter, available or not.
-spec frameworks() -> [map()].
frameworks() ->
    [describe(Name, framework_adapter_env:environment(Name)) || Name <- names()].

%% @doc One framework: state, workers, restarts, and why it is unavailable.
-spec framework(binary()) -> {ok, map()} | {error, agent_error:t()}.
framework(Name) ->
    Env = framework_adapter_env:environment(Name),
    case lists:member(Env, framework_adapter_env:known()) of
        false -> framework_adapter_env:available(Name);
        true -> {ok, describe(Name, Env)}
    end.

%% @doc Whether a task could be given to a framework now, from the tables alone: its environment is there, and its workers start, or
%% another machine has attached one.
-spec usable(binary()) -> ok | {error, agent_error:t()}.
usable(Name) ->
    Env = framework_adapter_env:environment(Name),
    case seen(fun() -> ets:lookup(?MODULE, {zygote, Env}) end) of
        [{_, #{state := down, failing := true, reason := Reason}}] ->
            case has_remote(Env) of
                true -> ok;
                false -> {error, agent_error:new(framework_unavailable, <<"its workers do not start: ", Reason/binary>>,
                                                 #{<<"framework">> => Name})}
            end;
        _ ->
            case framework_adapter_env:available(Name) of
                ok -> ok;
                {error, Error} -> case has_remote(Env) of true -> ok; false -> {error, Error} end
            end
    end.

-spec has_remote(binary()) -> boolean().
has_remote(Env) ->
    lists:any(fun(#{framework := F} = W) -> framework_adapter_env:environment(F) =:= Env andalso maps:get(host, W, <<>>) =/= <<>> end,
              seen(fun workers/0)).

%% While the pool is being started again its table is not there, and nothing is known.
-spec seen(fun(() -> [Row])) -> [Row].
seen(Read) ->
    try Read() catch error:badarg -> [] end.

%% @doc Ends the workers of a framework as they become idle.
-spec restart_workers(binary()) -> {ok, non_neg_integer()}.
restart_workers(Framework) ->
    framework_adapter_manager:restart_workers(Framework).

%% @doc A worker of another machine has attached; it is taken once it has said HELLO.
-spec attach(agent_native:remote()) -> ok.
attach(Remote) ->
    framework_adapter_manager:attach(Remote).

%% @doc The engine says which module serves the shell's functions below: it lies above this application.
-spec set_engine(module()) -> ok.
set_engine(Module) ->
    persistent_term:put({?MODULE, engine}, Module).

%% @doc From the shell: an agent of a type on a framework.
-spec spawn_agent(atom() | binary(), atom() | binary()) -> {ok, binary()} | {error, agent_error:t()}.
spawn_agent(AgentType, Framework) ->
    (persistent_term:get({?MODULE, engine})):spawn_agent(AgentType, Framework).

%% @doc From the shell: a task of an agent on a framework.
-spec execute_task(binary(), map() | binary(), atom() | binary(), map()) -> {ok, map()} | {error, agent_error:t()}.
execute_task(AgentId, Task, Framework, AdapterConfig) ->
    (persistent_term:get({?MODULE, engine})):execute_task(AgentId, Task, {framework, Framework, AdapterConfig}).

%% @doc Name of the view table.
-spec table() -> atom().
table() ->
    ?MODULE.

-spec names() -> [binary()].
names() ->
    Running = [F || #{framework := F} <- workers()],
    lists:usort([F || F <- framework_adapter_env:known() ++ Running]).

-spec describe(binary(), binary()) -> map().
describe(Name, Env) ->
    Zygote = case ets:lookup(?MODULE, {zygote, Env}) of [{_, Z}] -> Z; [] -> #{state => stopped} end,
    Workers = [W || W = #{framework := F} <- workers(), F =:= Name],
    Restarts = case ets:lookup(?MODULE, {restarts, Name}) of [{_, N}] -> N; [] -> 0 end,
    Isolation = lists:usort(lists:append([maps:get(isolation, W, []) || W <- Workers])),
    IsRemote = lists:any(fun(W) -> maps:get(host, W, <<>>) =/= <<>> end, Workers),
    {State, Reason} = case IsRemote of
                          true -> {ready, <<>>};
                          false -> state(maps:get(state, Zygote), maps:get(reason, Zygote, <<>>), Name)
                      end,
    #{name => Name, state => State, versions => maps:get(info, Zygote, <<>>), zygote => Zygote,
      lock_hash => framework_adapter_env:lock_hash(Name), workers => Workers, restarts => Restarts,
      isolation => Isolation, unavailable_reason => Reason}.

-spec state(up | starting | down | stopped, binary(), binary()) -> {ready | starting | stopped | unavailable, binary()}.
state(up, _, _) -> {ready, <<>>};
state(starting, _, _) -> {starting, <<>>};
state(down, Reason, _) -> {unavailable, Reason};
state(stopped, _, Name) ->
    case framework_adapter_env:available(Name) of
        ok -> {stopped, <<>>};
        {error, #{message := Message}} -> {unavailable, Message}
    end.

%% Order: the manager before what it started. 20 in 60 s, as for every supervisor of long-lived children; workers and
%% zygotes never spend it.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([framework_adapter_manager, framework_adapter_zygote_sup, framework_adapter_worker_sup]),
    ?MODULE = ets:new(?MODULE, [named_table, public, {read_concurrency, true}]),
    ok = framework_adapter_env:prepare_runtime_dir(),
    Sup = fun(Id) -> #{id => Id, start => {Id, start_link, []}, type => supervisor, shutdown => infinity} end,
    Manager = #{id => framework_adapter_manager, start => {framework_adapter_manager, start_link, []}, shutdown => 5000},
    {ok, {#{strategy => rest_for_one, intensity => 20, period => 60},
          [Manager, Sup(framework_adapter_zygote_sup), Sup(framework_adapter_worker_sup)]}}.
