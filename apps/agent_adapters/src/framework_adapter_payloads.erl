%% @doc Payloads of the two frames that tell a worker what to do: INIT, which agent it is, and EXECUTE, which task it runs.
-module(framework_adapter_payloads).

-export([init/4]).
-export([execute/2]).

%% @doc Binds a worker to one agent and tenant; `Dir' is the worker's own folder.
-spec init(Framework :: binary(), map(), binary(), file:filename()) -> binary().
init(Framework, Agent, Tenant, Dir) ->
    agent_native:wire_encode(init, #{
        agent => maps:get(payload, Agent, <<>>), tenant => Tenant, concurrency => framework_adapter_env:concurrency(Framework, Agent),
        entrypoint => maps:get(entrypoint, Agent, <<>>), project => framework_adapter_env:project(Agent),
        tools => maps:get(tools, Agent, []), storage_dir => iolist_to_binary(Dir),
        engine_version => <<"0.1.0">>, config_json => maps:get(config_json, Agent, <<"{}">>)}).

%% @doc A task, as {@link framework_adapter_worker:execute/3} is given it.
-spec execute(map(), map()) -> binary().
execute(#{task_id := TaskId, payload := Payload, attempt := Attempt} = Task, Agent) ->
    Header = maps:get(header, Task, #{}),
    agent_native:wire_encode(execute, #{
        task_id => TaskId, task => Payload, attempt => Attempt,
        deadline_ms => maps:get(deadline_ms, Task, 0), stream_text => maps:get(stream_text, Task, true),
        agent => maps:get(payload, Agent, <<>>), engine_tools => engine_tools:served(Agent, Header),
        tool_limit => maps:get(tool_limit, Task, 0), model => agent_providers:model(Agent, Header),
        start_time_ms => erlang:system_time(millisecond), seed => erlang:phash2(TaskId)}).
