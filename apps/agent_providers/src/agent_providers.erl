%% @doc Model calls (`docs/native_messages.md', section 4). Messages of a call come to the caller.
%%
%% A call with a `fence' in its options belongs to a running attempt: its task's journal may answer it, and what is live comes with an
%% entry, `journal' in the properties of its answer, that the caller records before the answer is used.
-module(agent_providers).

-export([chat/3]).
-export([embed/3]).
-export([cancel/1]).
-export([credit/2]).
-export([info/0]).
-export([model/2]).
-export([window/1]).
-export([select/2]).
-export([budgets/0]).

%% @doc Starts a call; its end is one message `{agent_native, Ref, done | error, _}', or is here already: `{done, _}'.
-spec chat(reference(), binary(), map()) -> ok | {done, map()} | busy | {error, agent_error:t()}.
chat(Ref, Request, Options) ->
    journaled(Options, fun(Journaled, P) -> agent_native:chat(P, Ref, Request, Journaled) end).

%% @doc Starts an embedding call.
-spec embed(reference(), binary(), map()) -> ok | {done, map()} | busy | {error, agent_error:t()}.
embed(Ref, Request, Options) ->
    journaled(Options, fun(Journaled, P) -> agent_native:embed(P, Ref, Request, Journaled) end).

%% @doc Aborts a call; its final message says that it was cancelled.
-spec cancel(reference()) -> ok | {done, map()} | busy | {error, agent_error:t()}.
cancel(Ref) ->
    with(fun(P) -> agent_native:cancel(P, Ref) end).

%% @doc Allows `N' more pieces.
-spec credit(reference(), pos_integer()) -> ok | {done, map()} | busy | {error, agent_error:t()}.
credit(Ref, N) ->
    with(fun(P) -> agent_native:credit(P, Ref, N) end).

%% @doc Every provider, and the embedded model's server.
-spec info() -> [map()].
info() ->
    case native_subsystem:handle(providers) of
        {ok, P} ->
            case agent_native:providers_info(P) of
                All when is_list(All) -> All;
                {error, native_down} -> []
            end;
        {error, native_down} ->
            []
    end.

%% @doc The model or alias of a task's calls: its own, else its agent's.
-spec model(Agent :: map(), Header :: map()) -> binary().
model(Agent, Header) ->
    case maps:get(model, Header, <<>>) of
        <<>> -> maps:get(model, Agent, <<"default">>);
        Model -> Model
    end.

%% @doc The window of a model or alias in tokens; 0: nobody has said it.
-spec window(Model :: binary()) -> non_neg_integer().
window(Model) ->
    case with(fun(P) -> agent_native:providers_window(P, Model) end) of
        N when is_integer(N) -> N;
        _ -> 0
    end.

%% @doc Who would answer a call under the rules of a task, without asking anybody; request and answer are messages of the provider service.
-spec select(Request :: binary(), Policy :: binary()) -> {ok, binary()} | {error, agent_error:t()}.
select(Request, Policy) ->
    with(fun(P) -> agent_native:providers_select(P, Request, Policy) end).

%% @doc Every account that is configured or was used: limits, what is spent, and what is lent to calls, in micro-dollars.
-spec budgets() -> [#{tenant := binary(), account := binary(), limit_micros := non_neg_integer() | undefined,
                      window_ms := non_neg_integer(), spent_micros := integer(), lent_micros := integer()}].
budgets() ->
    Configured = agent_config:get([budgets], #{}),
    Tenants = lists:usort(maps:keys(Configured) ++ maps:keys(agent_config:get([tenants], #{})) ++ [<<"default">>]),
    lists:append([budgets(Tenant, maps:get(accounts, maps:get(Tenant, Configured, #{}), [])) || Tenant <- Tenants]).

-spec budgets(binary(), [map()]) -> [map()].
budgets(Tenant, Accounts) ->
    Now = erlang:system_time(millisecond),
    Limits = maps:from_list([{<<Window/binary, $:, Level/binary, $:, Name/binary>>, Limit}
                             || #{level := Level, name := Name, window := Window, limit_micros := Limit} <- Accounts]),
    Rows = case agent_store:read({ledger, Tenant}) of {ok, Found} -> Found; {error, _} -> [] end,
    Used = maps:from_list([{Account, {Spent, Lent}} || {Account, Window, Spent, Lent} <- Rows,
                                                       Window =:= budget_core:window_ms(Account, Now)]),
    [begin
         {Spent, Lent} = maps:get(Account, Used, {0, 0}),
         #{tenant => Tenant, account => Account, limit_micros => maps:get(Account, Limits, undefined),
           window_ms => budget_core:window_ms(Account, Now), spent_micros => Spent div 1000000, lent_micros => Lent div 1000000}
     end || Account <- lists:usort(maps:keys(Limits) ++ maps:keys(Used))].

%% The journal is the store's. While that is away nobody can tell whether the answer was paid already: the caller asks again.
-spec journaled(map(), fun((map(), reference()) -> Answer)) -> Answer | {error, agent_error:t()}
    when Answer :: ok | {done, map()} | busy | {error, agent_error:t()}.
journaled(#{fence := _} = Options, Fun) ->
    case native_subsystem:handle(store) of
        {ok, Store} -> with(fun(P) -> Fun(Options#{store => Store}, P) end);
        {error, native_down} -> {error, (agent_error:new(store_unavailable, <<"the store is not up">>))#{retry_after_ms => 500}}
    end;
journaled(Options, Fun) ->
    with(fun(P) -> Fun(Options, P) end).

-spec with(fun((reference()) -> Answer | {error, native_down})) -> Answer | {error, agent_error:t()}.
with(Fun) ->
    case native_subsystem:handle(providers) of
        {ok, P} ->
            case Fun(P) of
                {error, native_down} -> {error, down()};
                Result -> Result
            end;
        {error, native_down} ->
            {error, down()}
    end.

-spec down() -> agent_error:t().
down() ->
    (agent_error:new(native_down, <<"the provider calls are being restarted">>))#{retry_after_ms => 500}.
