%% @doc What executes: native agents, framework workers, and the monitor of both. Also the way in from the shell.
%%
%% ```
%% {ok, Id} = agent_execution_supervisor:spawn_agent(researcher, langchain),
%% {ok, Task} = agent_execution_supervisor:execute_task(Id, "What is 6*7? Use the tool.", #{tools => [<<"calculate">>]}).
%% '''
%% Options: `native', `auto', a framework, `{native, Hints}', `{framework, Framework, AdapterConfig}', `{hybrid, NativePart,
%% FrameworkPart}', or a map or property list: `method' (one of those), `framework', `model', `tools', `task_type', `max_steps', `priority',
%% `durability', `tenant', `wait' (ms, 0: do not wait).
-module(agent_execution_supervisor).
-behaviour(supervisor).

%% API
-export([start_link/0]).
-export([spawn_agent/2]).
-export([execute_task/3]).
-export([execute_hybrid_task/3]).
-export([determine_execution_method/2]).
-export([select_optimal_execution_method/1]).

%% supervisor
-export([init/1]).

-type preference() :: auto | native | atom() | binary().
-type method() :: {native, Hints :: map()}
                | {framework, Framework :: binary(), AdapterConfig :: map()}
                | {hybrid, NativePart :: term(), FrameworkPart :: term()}.
-type options() :: preference() | method() | map() | [{atom(), term()}].

%% @doc Starts the pools.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Makes an agent of a type for an executor; gives its id. `auto' lets the router choose.
-spec spawn_agent(AgentType :: atom() | binary(), preference()) -> {ok, binary()} | {error, agent_error:t()}.
spawn_agent(AgentType, auto) ->
    %% Matched first: `auto' is no framework's name.
    case select_optimal_execution_method(AgentType) of
        {native, _} -> native_agent_pool:spawn_agent(AgentType);
        {framework, Framework, _} -> agent_registry:spawn_agent(AgentType, Framework);
        {error, Error} -> {error, Error}
    end;
spawn_agent(AgentType, native) ->
    native_agent_pool:spawn_agent(AgentType);
spawn_agent(AgentType, Framework) ->
    agent_registry:spawn_agent(AgentType, engine_names:binary(Framework)).

%% @doc Runs a task and waits for its end. `Task' is a text, or a map with `description'.
-spec execute_task(AgentId :: binary() | atom(), Task :: iodata() | map(), options()) ->
    {ok, map()} | {error, agent_error:t()}.
execute_task(AgentId, Task, Options) ->
    case determine_execution_method(Task, Options) of
        {native, Hints} -> native_agent_pool:execute_task(AgentId, Task, Hints);
        {framework, Framework, Config} -> engine_shell:run(AgentId, Task, Config#{method => framework, framework => Framework});
        {hybrid, Native, Framework} -> execute_hybrid_task(AgentId, Native, Framework);
        {auto, Hints} -> engine_shell:run(AgentId, Task, Hints#{method => auto})
    end.

%% @doc Runs the native part, then the framework's with the first one's answer for its work: one task with a plan of two steps, under one
%% bill, journal, deadline and cancel.
%%
%% A part is a task, or `{Task, Options}' with `framework' (of the second; else the task's preferred one decides), `model' and `agent_id'.
-spec execute_hybrid_task(binary() | atom(), NativePart :: term(), FrameworkPart :: term()) ->
    {ok, map()} | {error, agent_error:t()}.
execute_hybrid_task(AgentId, NativePart, FrameworkPart) ->
    {Native, NativeOptions} = part(NativePart),
    {Framework, Options} = part(FrameworkPart),
    Executor = engine_names:binary(maps:get(framework, Options, <<"auto">>)),
    Parts = [engine_shell:step(<<"native">>, <<"native">>, Native, NativeOptions),
             engine_shell:step(<<"framework">>, Executor, Framework, Options)],
    Own = maps:without([model, agent_id, framework], maps:merge(NativeOptions, Options)),
    engine_shell:run(AgentId, Framework, Own#{method => auto, parts => Parts}).

%% @doc How a task would run, from its options: what the caller says wins, `auto' is decided by the router later.
-spec determine_execution_method(Task :: term(), options()) -> method() | {auto, map()}.
determine_execution_method(_Task, {native, Hints}) ->
    {native, as_map(Hints)};
determine_execution_method(_Task, {framework, F, Config}) ->
    {framework, engine_names:binary(F), as_map(Config)};
determine_execution_method(_Task, {hybrid, Native, Framework}) ->
    {hybrid, Native, Framework};
determine_execution_method(Task, Method) when is_atom(Method) ->
    determine_execution_method(Task, #{method => Method});
determine_execution_method(Task, Options) when is_list(Options) ->
    determine_execution_method(Task, maps:from_list(proplists:unfold(Options)));
determine_execution_method(_Task, #{method := {native, Hints}} = O) ->
    {native, maps:merge(maps:remove(method, O), as_map(Hints))};
determine_execution_method(_Task, #{method := {framework, F, Config}} = O) ->
    {framework, engine_names:binary(F), maps:merge(maps:remove(method, O), as_map(Config))};
determine_execution_method(_Task, #{method := {hybrid, Native, Framework}}) ->
    {hybrid, Native, Framework};
determine_execution_method(_Task, #{method := native} = O) ->
    {native, maps:remove(method, O)};
determine_execution_method(_Task, #{method := framework, framework := F} = O) ->
    {framework, engine_names:binary(F), maps:without([method, framework], O)};
determine_execution_method(_Task, #{method := auto} = O) ->
    {auto, maps:remove(method, O)};
determine_execution_method(_Task, #{method := F} = O) ->
    {framework, engine_names:binary(F), maps:remove(method, O)};
determine_execution_method(_Task, O) ->
    {auto, O}.

%% @doc The executor that a task of this agent type would get now.
-spec select_optimal_execution_method(AgentType :: atom() | binary()) ->
    {native, map()} | {framework, binary(), map()} | {error, agent_error:t()}.
select_optimal_execution_method(AgentType) ->
    case agent_registry:resolve(<<"default">>, <<>>, engine_names:binary(AgentType)) of
        {ok, Agent} ->
            Header = #{method => auto, task_type => maps:get(task_type, Agent, <<"general">>)},
            case agent_engine:route(Header, Agent) of
                {ok, #{executor := <<"native">>} = Route} -> {native, #{route => Route}};
                {ok, #{executor := Framework} = Route} -> {framework, Framework, #{route => Route}};
                {error, Error} -> {error, Error}
            end;
        {error, Error} ->
            {error, Error}
    end.

-spec as_map(map() | [{atom(), term()}]) -> map().
as_map(Map) when is_map(Map) -> Map;
as_map(List) when is_list(List) -> maps:from_list(proplists:unfold(List)).

-spec part(term()) -> {term(), map()}.
part({Task, Options}) -> {Task, as_map(Options)};
part(Task) -> {Task, #{}}.

%% 10 in 60 s, as the original says; the children are supervisors and a gen_server that only counts, and what runs under
%% them is temporary, so a killed worker never spends it. Pools are supervisors: `infinity', or they would orphan what runs.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([native_agent_pool, framework_adapter_pool, performance_monitor]),
    ok = framework_adapter_pool:set_engine(?MODULE),
    Sup = fun(Id) -> #{id => Id, start => {Id, start_link, []}, restart => permanent, type => supervisor,
                       shutdown => infinity} end,
    Monitor = #{id => performance_monitor, start => {performance_monitor, start_link, []}, restart => permanent,
                shutdown => 5000},
    {ok, {#{strategy => one_for_one, intensity => 10, period => 60},
          [Sup(native_agent_pool), Sup(framework_adapter_pool), Monitor]}}.
