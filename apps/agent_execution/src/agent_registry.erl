%% @doc Agents and agent types: those of the configuration, the built-in types, and those made through the API, which the
%% store keeps. Reads are look-ups in a table; this process makes the changes, one at a time.
%%
%% An agent is a map: `id', `agent_type', `framework', `instructions', `model', `tools', `crew_profile', `etag', `create_ms',
%% `configured', for configured ones `project' and `entrypoint'; and `payload', the same as protobuf, made once.
-module(agent_registry).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([warm/0]).
-export([resolve/3]).
-export([get/2]).
-export([list/1]).
-export([types/0]).
-export([create/2]).
-export([update/2]).
-export([delete/3]).
-export([spawn_agent/2]).

%% gen_server
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% The type of a task that names neither agent nor type.
-define(DEFAULT_TYPE, <<"assistant">>).
%% Configured agents are everybody's.
-define(ANYBODY, <<"*">>).
%% The store may come up after us, in ms.
-define(LOAD_RETRY_MS, 250).
%% Agents made through the API, of all tenants.
-define(MAX_AGENTS, 100000).

-type agent() :: map().

%% @doc Starts the registry.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc The agent of a task: by id, by type, or the assistant.
-spec resolve(Tenant :: binary(), AgentId :: binary(), AgentType :: binary()) -> {ok, agent()} | {error, agent_error:t()}.
resolve(Tenant, <<>>, <<>>) ->
    resolve(Tenant, <<>>, ?DEFAULT_TYPE);
resolve(Tenant, <<>>, Type) ->
    case ets:lookup(engine_tables:agents(), {type, Type}) of
        [{_, Agent}] ->
            {ok, Agent};
        [] ->
            %% `[agents.NAME]' is both: an agent, and what `agent_type = NAME' means.
            case get(Tenant, Type) of
                {ok, Agent} ->
                    {ok, Agent};
                {error, _} ->
                    Known = lists:join(<<", ">>, [N || #{name := N} <- types()]),
                    {error, agent_error:new(agent_not_found, ["there is no agent type \"", Type, "\"; there are ", Known],
                                            #{<<"agent_type">> => Type})}
            end
    end;
resolve(Tenant, AgentId, _) ->
    get(Tenant, AgentId).

%% @doc An agent by its id.
-spec get(Tenant :: binary(), AgentId :: binary()) -> {ok, agent()} | {error, agent_error:t()}.
get(Tenant, AgentId) ->
    Table = engine_tables:agents(),
    case ets:lookup(Table, {Tenant, AgentId}) of
        [{_, Agent}] -> {ok, Agent};
        [] ->
            case ets:lookup(Table, {?ANYBODY, AgentId}) of
                [{_, Agent}] -> {ok, Agent};
                [] -> {error, agent_error:new(agent_not_found, ["there is no agent \"", AgentId, "\""],
                                              #{<<"agent_id">> => AgentId})}
            end
    end.

%% @doc Every agent that a tenant may name, by id.
-spec list(Tenant :: binary()) -> [agent()].
list(Tenant) ->
    Of = fun(Owner) -> [A || [A] <- ets:match(engine_tables:agents(), {{Owner, '_'}, '$1'})] end,
    lists:sort(fun(#{id := A}, #{id := B}) -> A =< B end, Of(Tenant) ++ Of(?ANYBODY)).

%% @doc Agent types with what their agents are made of.
-spec types() -> [#{name := binary(), template := agent(), built_in := boolean()}].
types() ->
    [#{name => Name, template => Agent, built_in => engine_agents:is_built_in(Name)}
     || [Name, Agent] <- lists:sort(ets:match(engine_tables:agents(), {{type, '$1'}, '$2'}))].

%% @doc Makes an agent; where it gives no id, one is made.
-spec create(Tenant :: binary(), agent()) -> {ok, agent()} | {error, agent_error:t()}.
create(Tenant, Agent) ->
    call({create, Tenant, Agent}).

%% @doc Changes an agent; `etag' must be the current one, or empty.
-spec update(Tenant :: binary(), agent()) -> {ok, agent()} | {error, agent_error:t()}.
update(Tenant, Agent) ->
    call({update, Tenant, Agent}).

%% @doc Forgets an agent; tasks under way go on.
-spec delete(Tenant :: binary(), AgentId :: binary(), Etag :: binary()) -> ok | {error, agent_error:t()}.
delete(Tenant, AgentId, Etag) ->
    call({delete, Tenant, AgentId, Etag}).

%% @doc From the shell: an agent of a type for an executor.
-spec spawn_agent(AgentType :: atom() | binary(), Framework :: binary()) -> {ok, binary()} | {error, agent_error:t()}.
spawn_agent(AgentType, Framework) ->
    Type = engine_names:binary(AgentType),
    case create(<<"default">>, #{agent_type => Type, framework => Framework}) of
        {ok, #{id := Id}} -> {ok, Id};
        {error, Error} -> {error, Error}
    end.

%% A change waits for its commit: longer than a store write may take.
%% @doc Has workers started for the agents of the configuration, see {@link framework_adapter_pool:warm_agent/2}.
-spec warm() -> ok.
warm() ->
    Tenants = case maps:keys(agent_config:get([tenants], #{})) of [] -> [<<"default">>]; Names -> Names end,
    lists:foreach(fun({A, Tenant}) -> framework_adapter_pool:warm_agent(A, Tenant) end,
                  [{with_payload(A), Tenant} || #{framework := F} = A <- engine_agents:configured(), framework_adapter_pool:is_warm(F),
                                                Tenant <- Tenants]).

-spec call(tuple()) -> term().
call(Request) ->
    gen_server:call(?MODULE, Request, 40000).

%% ---- gen_server

-spec init([]) -> {ok, loading | loaded, {continue, load}}.
init([]) ->
    {ok, loading, {continue, load}}.

-spec handle_continue(load, loading | loaded) -> {noreply, loading | loaded}.
handle_continue(load, State) ->
    Table = engine_tables:agents(),
    true = ets:insert(Table, [{{type, N}, with_payload(A)} || {N, A} <- engine_agents:types()]),
    true = ets:insert(Table, [{{?ANYBODY, Id}, with_payload(A)} || #{id := Id} = A <- engine_agents:configured()]),
    {noreply, load(State)}.

-spec load(loading | loaded) -> loading | loaded.
load(_) ->
    case agent_store:read({agents, all}) of
        {ok, Stored} ->
            lists:foreach(fun stored/1, Stored),
            loaded;
        {error, _} ->
            _ = erlang:send_after(?LOAD_RETRY_MS, self(), load),
            loading
    end.

-spec stored({binary(), binary(), binary()}) -> ok.
stored({Tenant, Id, Data}) ->
    case agent_native:agent_decode(Data) of
        {ok, Agent} -> true = ets:insert(engine_tables:agents(), {{Tenant, Id}, Agent#{payload => Data, configured => false}}), ok;
        {error, _} -> ok
    end.

-spec handle_call(tuple(), gen_server:from(), loading | loaded) -> {reply, term(), loading | loaded}.
handle_call(Request, From, loading) ->
    %% The store may have come up since the last try: the first client must not hear of our clock.
    case load(loading) of
        loaded -> handle_call(Request, From, loaded);
        loading -> {reply, {error, (agent_error:new(store_unavailable, <<"agents are being loaded">>))#{retry_after_ms => 500}}, loading}
    end;
handle_call({create, Tenant, Given}, _From, State) ->
    {reply, created(Tenant, Given), State};
handle_call({update, Tenant, #{id := Id} = Given}, _From, State) ->
    Etag = maps:get(etag, Given, <<>>),
    Changed = case own(Tenant, Id, Etag) of
                  {ok, Old} -> put_agent(Tenant, maps:merge(Old, maps:without([etag, create_ms, configured], Given)));
                  {error, Error} -> {error, Error}
              end,
    {reply, Changed, State};
handle_call({delete, Tenant, Id, Etag}, _From, State) ->
    Deleted = case own(Tenant, Id, Etag) of
                  {ok, _} -> forget(Tenant, Id, agent_store:write({delete_agent, Tenant, Id}));
                  {error, Error} -> {error, Error}
              end,
    {reply, Deleted, State}.

-spec handle_cast(term(), loading | loaded) -> {noreply, loading | loaded}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), loading | loaded) -> {noreply, loading | loaded}.
handle_info(load, State) ->
    {noreply, load(State)};
handle_info(_, State) ->
    {noreply, State}.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.

%% ---- changes

-spec created(binary(), agent()) -> {ok, agent()} | {error, agent_error:t()}.
created(Tenant, Given0) ->
    Id = case maps:get(id, Given0, <<>>) of <<>> -> agent_native:uuid7(); I -> I end,
    Type = maps:get(agent_type, Given0, ?DEFAULT_TYPE),
    %% Empty fields are the type's.
    Given = maps:filter(fun(_, V) -> V =/= <<>> andalso V =/= [] end, Given0),
    Exists = case get(Tenant, Id) of {ok, _} -> true; {error, _} -> false end,
    case {Exists, resolve(Tenant, <<>>, Type), ets:info(engine_tables:agents(), size) < ?MAX_AGENTS} of
        {true, _, _} ->
            {error, agent_error:new(wrong_state, ["there is an agent \"", Id, "\" already; update it"],
                                    #{<<"agent_id">> => Id})};
        {_, {error, Error}, _} ->
            {error, Error};
        {_, _, false} ->
            {error, agent_error:new(quota_exceeded, <<"the engine keeps no more agents">>)};
        {false, {ok, Template}, true} ->
            case known_framework(maps:get(framework, Given, <<"auto">>)) of
                ok ->
                    Agent = maps:merge(maps:without([payload], Template), Given),
                    put_agent(Tenant, Agent#{id => Id, agent_type => Type, configured => false,
                                             create_ms => erlang:system_time(millisecond)});
                {error, Error} ->
                    {error, Error}
            end
    end.

%% A framework that is not installed yet may be named, one that no adapter knows may not.
-spec known_framework(binary()) -> ok | {error, agent_error:t()}.
known_framework(Framework) when Framework =:= <<"auto">>; Framework =:= <<"native">> ->
    ok;
known_framework(Framework) ->
    framework_adapter_env:has_adapter(Framework).

-spec own(binary(), binary(), binary()) -> {ok, agent()} | {error, agent_error:t()}.
own(Tenant, Id, Etag) ->
    case get(Tenant, Id) of
        {ok, #{configured := true}} ->
            {error, agent_error:new(wrong_state, <<"the agent stands in the configuration file; change it there">>)};
        {ok, #{etag := Current}} when Etag =/= <<>>, Etag =/= Current ->
            {error, agent_error:new(etag_mismatch, <<"the agent has changed since it was read">>, #{<<"etag">> => Current})};
        Other ->
            Other
    end.

-spec put_agent(binary(), agent()) -> {ok, agent()} | {error, agent_error:t()}.
put_agent(Tenant, #{id := Id} = Given) ->
    Agent = #{payload := Data} = with_payload(Given#{etag => integer_to_binary(erlang:system_time(microsecond), 36)}),
    case agent_store:write({put_agent, Tenant, Id, maps:with([id, agent_type, framework], Agent), Data}) of
        {ok, _} -> true = ets:insert(engine_tables:agents(), {{Tenant, Id}, Agent}), {ok, Agent};
        {_, Error} -> {error, engine_errors:from(Error)}
    end.

-spec forget(binary(), binary(), {ok | error | unknown, term()}) -> ok | {error, agent_error:t()}.
forget(Tenant, Id, {ok, _}) ->
    true = ets:delete(engine_tables:agents(), {Tenant, Id}),
    ok;
forget(_, _, {_, Error}) ->
    {error, engine_errors:from(Error)}.

%% Without the native library there is none, and nothing that would read it.
-spec with_payload(agent()) -> agent().
with_payload(Agent) ->
    case agent_native:agent_encode(maps:without([payload, project, entrypoint], Agent)) of
        Data when is_binary(Data) -> Agent#{payload => Data};
        {error, _} -> Agent#{payload => <<>>}
    end.
