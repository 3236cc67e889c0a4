%% @doc The pool of framework workers: supervisor of zygotes, workers, the installer and their manager, and the pool's public functions.
%%
%% `rest_for_one' in the order manager, zygotes, workers: what the manager leased must not outlive its books. Its view
%% table belongs to this supervisor, so that views survive a crash of the manager.
-module(framework_adapter_pool).
-behaviour(supervisor).

%% API
-export([start_link/0]).
-export([lease/1]).
-export([cancel_lease/1]).
-export([is_warm/1]).
-export([warm_agent/2]).
-export([workers/0]).
-export([frameworks/0]).
-export([framework/1]).
-export([usable/1]).
-export([usable/2]).
-export([state_of/2]).
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

%% @doc Whether `[workers] warm_frameworks' names a framework or one of its environment.
-spec is_warm(binary()) -> boolean().
is_warm(Framework) ->
    Env = framework_adapter_env:environment(Framework),
    lists:any(fun(F) -> framework_adapter_env:environment(F) =:= Env end, agent_config:get([workers, warm_frameworks], [])).

%% @doc Starts the workers that `[workers] warm' wants of an agent, as far as there is room.
-spec warm_agent(Agent :: map(), Tenant :: binary()) -> ok.
warm_agent(Agent, Tenant) ->
    framework_adapter_manager:warm_agent(Agent, Tenant).

%% @doc Every worker: `#{worker, framework, agent_id, state, task_id, host_pid, rss_bytes, started_ms, isolation}'.
-spec workers() -> [map()].
workers() ->
    [View || {Id, View} <- ets:tab2list(?MODULE), is_binary(Id)].

%% @doc Every framework with an adapter, available or not.
-spec frameworks() -> [map()].
frameworks() ->
    [describe(Name) || Name <- names()].

%% @doc One framework: state, workers, restarts, and why it is unavailable.
-spec framework(binary()) -> {ok, map()} | {error, agent_error:t()}.
framework(Name) ->
    case framework_adapter_env:has_adapter(Name) of
        {error, Error} -> {error, Error};
        ok -> {ok, describe(Name)}
    end.

%% @doc Whether a task could be given to a framework now, from the tables alone: its environment is there, and its workers start, or
%% another machine has attached one. `installable': it is missing, and would be made at first use.
-spec usable(binary()) -> ok | {installable, agent_error:t()} | {error, agent_error:t()}.
usable(Name) ->
    usable(Name, #{}).

%% @doc The same for an agent, which may have an environment of its own.
-spec usable(binary(), map()) -> ok | {installable, agent_error:t()} | {error, agent_error:t()}.
usable(Name, Agent) ->
    Env = #{name := EnvName, framework := Base} = framework_adapter_lock:of_agent(Name, Agent),
    case seen(fun() -> ets:lookup(?MODULE, {zygote, EnvName}) end) of
        [{_, #{state := down, failing := true, reason := Reason}}] ->
            case has_remote(Base) of
                true -> ok;
                false -> {error, agent_error:new(framework_unavailable, <<"its workers do not start: ", Reason/binary>>,
                                                 #{<<"framework">> => Name})}
            end;
        _ ->
            case state_of(Name, Env) of
                ok -> ok;
                Other -> case has_remote(Base) of true -> ok; false -> Other end
            end
    end.

%% @doc Whether an environment is there, could be made, or neither.
-spec state_of(binary(), framework_adapter_lock:env()) -> ok | {installable, agent_error:t()} | {error, agent_error:t()}.
state_of(Framework, #{name := Name} = Env) ->
    case framework_adapter_env:has_adapter(Framework) of
        {error, Error} ->
            {error, Error};
        ok ->
            case {framework_adapter_lock:state(Env), framework_adapter_installer:allowed(), framework_adapter_installer:failed(Name)} of
                {ok, _, _} -> ok;
                {{error, Error}, false, _} -> {error, Error};
                {{error, Error}, true, _} when is_map_key(fault, Env) -> {error, Error};
                {{error, Error}, true, {true, Reason}} -> {error, Error#{message => Reason}};
                {{error, Error}, true, false} -> {installable, Error}
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

-spec describe(binary()) -> map().
describe(Name) ->
    Env = #{name := EnvName} = framework_adapter_lock:of_framework(Name),
    Zygote = zygote(EnvName),
    Workers = [W || W = #{framework := F} <- workers(), F =:= Name],
    Restarts = case ets:lookup(?MODULE, {restarts, Name}) of [{_, N}] -> N; [] -> 0 end,
    Isolation = lists:usort(lists:append([maps:get(isolation, W, []) || W <- Workers])),
    Here = environment(Env),
    State = case lists:any(fun(W) -> maps:get(host, W, <<>>) =/= <<>> end, Workers) of
                true -> Here#{state => ready, unavailable_reason => <<>>};
                false -> Here
            end,
    Own = [(environment(E))#{agents => Agents} || {E, Agents} <- framework_adapter_lock:configured(Name)],
    State#{name => Name, versions => maps:get(info, Zygote, <<>>), zygote => Zygote, lock_hash => framework_adapter_lock:stamp(EnvName),
           workers => Workers, restarts => Restarts, isolation => Isolation, environments => Own}.

-spec zygote(binary()) -> map().
zygote(EnvName) ->
    case ets:lookup(?MODULE, {zygote, EnvName}) of [{_, Z}] -> Z; [] -> #{state => stopped} end.

%% An environment as it is now.
-spec environment(framework_adapter_lock:env()) -> map().
environment(#{name := Name, python := Python} = Env) ->
    View = #{name => Name, python => Python, lock_hash => framework_adapter_lock:stamp(Name), progress => <<>>},
    case {zygote(Name), framework_adapter_installer:progress(Name)} of
        {#{state := up}, _} -> View#{state => ready, unavailable_reason => <<>>};
        {#{state := starting}, _} -> View#{state => starting, unavailable_reason => <<>>};
        {_, {installing, Progress}} -> View#{state => installing, unavailable_reason => <<>>, progress => Progress};
        {#{state := down, reason := Reason}, none} -> View#{state => unavailable, unavailable_reason => Reason};
        {_, none} ->
            case framework_adapter_lock:state(Env) of
                ok -> View#{state => stopped, unavailable_reason => <<>>};
                {error, #{message := Message}} ->
                    Failed = case framework_adapter_installer:failed(Name) of {true, Why} -> Why; false -> Message end,
                    View#{state => unavailable, unavailable_reason => Failed}
            end
    end.

%% Order: the manager before what it started. 20 in 60 s, as for every supervisor of long-lived children; workers and
%% zygotes never spend it.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([framework_adapter_manager, framework_adapter_zygote_sup, framework_adapter_worker_sup,
                        framework_adapter_installer]),
    ?MODULE = ets:new(?MODULE, [named_table, public, {read_concurrency, true}]),
    ok = framework_adapter_env:prepare_runtime_dir(),
    Sup = fun(Id) -> #{id => Id, start => {Id, start_link, []}, type => supervisor, shutdown => infinity} end,
    Process = fun(Id) -> #{id => Id, start => {Id, start_link, []}, shutdown => 5000} end,
    {ok, {#{strategy => rest_for_one, intensity => 20, period => 60},
          %% The installer comes last: its end costs builds and no worker.
          [Process(framework_adapter_manager), Sup(framework_adapter_zygote_sup), Sup(framework_adapter_worker_sup),
           Process(framework_adapter_installer)]}}.
