%% @doc Tasks from the shell: built by the native side as if they had come over gRPC, submitted, and waited for.
-module(engine_shell).

-export([run/3]).
-export([wait/3]).
-export([step/4]).

%% How long a call from the shell waits for the end, unless it says so, in ms.
-define(WAIT_MS, 120000).
-define(POLL_MS, 25).

%% @doc Submits a task and waits for its end: `{ok, #{task_id, state, ...}}'. With `wait => 0' only its id is known.
-spec run(AgentId :: binary() | atom() | string(), Task :: iodata() | map(), Options :: map()) ->
    {ok, map()} | {error, agent_error:t()}.
run(AgentId, Task, Options) ->
    Wait = maps:get(wait, Options, ?WAIT_MS),
    Map0 = maps:merge(maps:without([wait, route], Options), task(Task)),
    Tenant = engine_names:binary(maps:get(tenant, Map0, <<"default">>)),
    Map = texts((agent(engine_names:binary(AgentId), Tenant, Map0))#{tenant => Tenant}),
    case agent_native:task_encode(Map) of
        {ok, Header, Payload} ->
            case agent_engine:submit(Header, Payload) of
                {ok, Id} when Wait =:= 0 -> {ok, #{task_id => Id, state => submitted}};
                {ok, Id} -> wait(Id, Wait, Tenant);
                {error, Error} -> {error, Error}
            end;
        {error, Error} ->
            {error, engine_errors:from(Error)}
    end.

%% @doc Waits for the end of a task; after `WaitMs' gives what it is then.
-spec wait(TaskId :: binary(), WaitMs :: non_neg_integer(), Tenant :: binary()) -> {ok, map()} | {error, agent_error:t()}.
wait(TaskId, WaitMs, Tenant) ->
    wait_until(TaskId, erlang:monotonic_time(millisecond) + WaitMs, Tenant).

-spec wait_until(binary(), integer(), binary()) -> {ok, map()} | {error, agent_error:t()}.
wait_until(TaskId, Until, Tenant) ->
    case agent_store:read({task, TaskId, Tenant}) of
        {ok, #{state := State} = Task} when State =:= succeeded; State =:= failed; State =:= cancelled; State =:= timed_out ->
            {ok, Task#{task_id => TaskId}};
        {ok, Task} ->
            case erlang:monotonic_time(millisecond) >= Until of
                true -> {ok, Task#{task_id => TaskId}};
                false -> receive after ?POLL_MS -> wait_until(TaskId, Until, Tenant) end
            end;
        {error, Error} ->
            {error, engine_errors:from(Error)}
    end.

%% @doc A part of a task that several do in turn.
-spec step(Name :: binary(), Executor :: binary(), Task :: iodata() | map(), Options :: map()) -> map().
step(Name, Executor, Task, Options) ->
    #{description := Description} = task(Task),
    Texts = maps:map(fun(_, Value) -> engine_names:binary(Value) end, maps:with([model, agent_id], Options)),
    Texts#{name => Name, executor => Executor, description => Description}.

-spec task(iodata() | map()) -> map().
task(#{description := D} = Task) -> Task#{description => engine_names:binary(D)};
task(Text) -> #{description => engine_names:binary(Text)}.

%% What names an agent is its id; anything else is a type.
-spec agent(binary(), binary(), map()) -> map().
agent(Name, Tenant, Map) ->
    case agent_registry:get(Tenant, Name) of
        {ok, _} -> Map#{agent_id => Name};
        {error, _} -> Map#{agent_type => Name}
    end.

-spec texts(map()) -> map().
texts(Map) ->
    maps:map(fun(parts, Parts) -> Parts;
                (Key, Value) when is_list(Value), Key =/= tools -> engine_names:binary(Value);
                (tools, Tools) -> [engine_names:binary(T) || T <- Tools];
                (Key, Value) when is_atom(Value), Key =/= method, Key =/= durability, not is_boolean(Value) -> engine_names:binary(Value);
                (_, Value) -> Value
             end, Map).
