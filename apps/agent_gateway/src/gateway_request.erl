%% @doc One request, in a process of its own: asks the engine, answers the token.
-module(gateway_request).

-include_lib("kernel/include/logger.hrl").

-export([handle/1]).

%% @doc Handles a request of `docs/native_messages.md', section 6.
-spec handle(map()) -> ok.
handle(#{token := Token, method := Method, tenant := Tenant, header := Header, payload := Payload}) ->
    Reply = case tenant_registry:enter(Tenant) of
                ok -> counted(Method, Tenant, Header, Payload);
                {error, Error} -> {error, Error}
            end,
    %% A client that has gone is no error.
    _ = agent_native:grpc_reply(Token, Reply),
    ok.

-spec counted(atom(), binary(), map(), term()) -> term().
counted(Method, Tenant, Header, Payload) ->
    try
        answer(Method, Tenant, Header, Payload)
    catch
        Class:Reason:Stack ->
            %% Arguments in the stack may hold prompts: only functions and their places are logged.
            Places = [{M, F, case A of N when is_integer(N) -> N; L -> length(L) end} || {M, F, A, _} <- Stack],
            ?LOG_ERROR(#{msg => request_failed, method => Method, class => Class, reason => kind(Reason), stack => Places},
                       #{domain => [agent, gateway]}),
            {error, agent_error:new(internal, <<"the engine failed on this request; see the node's log">>)}
    after
        tenant_registry:leave(Tenant)
    end.

%% The shape of a fault without its data.
-spec kind(term()) -> atom().
kind(Reason) when is_atom(Reason) -> Reason;
kind(Reason) when is_tuple(Reason), tuple_size(Reason) > 0, is_atom(element(1, Reason)) -> element(1, Reason);
kind(_) -> other.

-spec answer(atom(), binary(), map(), term()) -> term().
answer(Method, _Tenant, Header, Payload) when Method =:= submit_task; Method =:= retry_task ->
    case agent_engine:submit(Header, Payload) of
        {ok, TaskId} -> {task, TaskId};
        {error, Error} -> {error, Error}
    end;
answer(check_task, _, Header, Payload) ->
    %% Without an id nothing is drawn: whoever asks is told what most of such tasks get.
    case agent_engine:check(maps:remove(task_id, Header), Payload) of
        {ok, _, Route} -> {route, Route};
        {error, Error} -> {error, Error}
    end;
answer(cancel_task, Tenant, #{task_id := TaskId, grace_ms := Grace, reason := Reason}, _) ->
    case agent_engine:cancel(Tenant, TaskId, Grace, Reason) of
        {ok, Proof} -> {cancelled, TaskId, Proof};
        {error, Error} -> {error, Error}
    end;
answer(signal_task, Tenant, #{task_id := TaskId}, Signal) ->
    case agent_engine:signal(Tenant, TaskId, Signal) of
        ok -> {task, TaskId};
        {error, Error} -> {error, Error}
    end;
answer(delete_task, Tenant, #{task_id := TaskId}, _) ->
    case agent_store:write({delete, Tenant, TaskId}) of
        {ok, _} -> ok;
        {_, Error} -> {error, engine_errors:from(Error)}
    end;
answer(create_agent, Tenant, Agent, _) ->
    agent(agent_registry:create(Tenant, Agent));
answer(get_agent, Tenant, #{agent_id := Id}, _) ->
    agent(agent_registry:get(Tenant, Id));
answer(update_agent, Tenant, Agent, _) ->
    agent(agent_registry:update(Tenant, Agent));
answer(delete_agent, Tenant, #{agent_id := Id, etag := Etag}, _) ->
    agent_registry:delete(Tenant, Id, Etag);
answer(list_agents, Tenant, _, _) ->
    {agents, agent_registry:list(Tenant)};
answer(list_agent_types, _, _, _) ->
    {agent_types, agent_registry:types()};
answer(list_frameworks, _, _, _) ->
    {frameworks, framework_adapter_pool:frameworks()};
answer(get_framework, _, #{framework := Name}, _) ->
    case framework_adapter_pool:framework(Name) of
        {ok, Framework} -> {framework, Framework};
        {error, Error} -> {error, Error}
    end;
answer(restart_workers, _, #{framework := Name}, _) ->
    case framework_adapter_pool:framework(Name) of
        {ok, _} -> {ok, N} = framework_adapter_pool:restart_workers(Name), {restarted, N};
        {error, Error} -> {error, Error}
    end;
answer(Method, _, _, _) ->
    Name = atom_to_binary(Method),
    {error, agent_error:new(capability_pending, <<Name/binary, " has not come yet">>, #{<<"capability">> => Name})}.

-spec agent({ok, map()} | {error, agent_error:t()}) -> {agent, map()} | {error, agent_error:t()}.
agent({ok, Agent}) -> {agent, Agent};
agent({error, Error}) -> {error, Error}.
