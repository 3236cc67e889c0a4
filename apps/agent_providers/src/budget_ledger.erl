%% @doc The ledger of one tenant: lends money to the calls of this node, and hears what they have spent.
%%
%% A lease is committed before it is lent. What was lent and is not known to be left counts as spent: so when this process begins, and
%% when the provider calls were restarted. Wants that came together are one commit.
-module(budget_ledger).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1]).
-export([rows/1]).

%% gen_server
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

%% Between two looks at what was spent, in ms.
-define(TICK_MS, 250).
%% Wants that are served by one commit, at most.
-define(BATCH, 512).

-record(ledger, {
    tenant :: binary(),
    %% Whether what earlier nodes were lent is closed.
    open = false :: boolean(),
    rows = #{} :: budget_core:rows(),
    %% Changes that the store has not taken yet.
    unsaved = [] :: [map()],
    tick = off :: off | reference()
}).

%% @doc Starts the ledger of a tenant.
-spec start_link(binary()) -> gen_server:start_ret().
start_link(Tenant) ->
    gen_server:start_link(?MODULE, Tenant, []).

%% @doc Accounts with an open lease.
-spec rows(pid()) -> budget_core:rows().
rows(Pid) ->
    gen_server:call(Pid, rows).

-spec init(binary()) -> {ok, #ledger{}, {continue, begun}}.
init(Tenant) ->
    process_flag(trap_exit, true),
    {ok, #ledger{tenant = Tenant}, {continue, begun}}.

%% The calls of an earlier ledger may go on: what they hold is theirs, and everything else that was lent is spent.
-spec handle_continue(begun, #ledger{}) -> {noreply, #ledger{}}.
handle_continue(begun, L) ->
    {noreply, begun(L)}.

-spec handle_call(rows, gen_server:from(), #ledger{}) -> {reply, budget_core:rows(), #ledger{}}.
handle_call(rows, _, L) ->
    {reply, L#ledger.rows, L}.

%% `renewed': the provider calls were restarted, and nobody knows what the earlier ones have spent.
-spec handle_cast(renewed, #ledger{}) -> {noreply, #ledger{}}.
handle_cast(renewed, L) ->
    {noreply, begun(L#ledger{open = false, rows = #{}, unsaved = []})}.

-spec handle_info(term(), #ledger{}) -> {noreply, #ledger{}}.
handle_info({want, Id, Needs}, L) ->
    {noreply, ticking(serve([{Id, Needs} | more(?BATCH - 1)], L))};
handle_info({timeout, Tick, tick}, L = #ledger{tick = Tick}) ->
    L1 = #ledger{rows = Rows, unsaved = Unsaved} = settle(changed, turn(L#ledger{tick = off})),
    case map_size(Rows) =:= 0 andalso Unsaved =:= [] of
        true -> {noreply, L1};
        false -> {noreply, ticking(L1)}
    end;
handle_info(_, L) ->
    {noreply, L}.

-spec ticking(#ledger{}) -> #ledger{}.
ticking(L = #ledger{tick = off}) -> L#ledger{tick = erlang:start_timer(?TICK_MS, self(), tick)};
ticking(L) -> L.

-spec more(non_neg_integer()) -> [budget_core:want()].
more(0) -> [];
more(N) ->
    receive {want, Id, Needs} -> [{Id, Needs} | more(N - 1)]
    after 0 -> []
    end.

%% ---- begin

-spec begun(#ledger{}) -> #ledger{}.
begun(L = #ledger{tenant = Tenant}) ->
    case native(fun(P) -> agent_native:budget_sums(P, Tenant, all) end) of
        [_ | _] = Sums ->
            L1 = lists:foldl(fun({Account, Open, _, _}, Acc) -> resumed(Account, Open, Acc) end, L#ledger{open = true}, Sums),
            ticking(save(L1));
        [] ->
            %% Without this commit no lease is given: it is tried again with the next want.
            case agent_store:write({ledger, Tenant, close}) of
                {ok, _} ->
                    L#ledger{open = true};
                {_, #{reason := Reason}} ->
                    ?LOG_WARNING(#{msg => ledger_not_open, tenant => Tenant, reason => Reason}, #{domain => [agent, providers]}),
                    L
            end;
        {error, native_down} ->
            L
    end.

-spec resumed(budget_core:account(), integer(), #ledger{}) -> #ledger{}.
resumed(Account, Open, L = #ledger{rows = Rows}) ->
    case stored(Account, L) of
        #{lent := Lent} = Row -> spent(Account, Lent - Open, L#ledger{rows = Rows#{Account => Row}});
        none -> L
    end.

%% The newest window of an account in the store.
-spec stored(budget_core:account(), #ledger{}) -> budget_core:row() | none.
stored(Account, #ledger{tenant = Tenant}) ->
    case agent_store:read({ledger, Tenant, Account}) of
        {ok, [{_, Window, Spent, Lent} | _]} -> #{window_ms => Window, spent => Spent, lent => Lent, rate => 0};
        _ -> none
    end.

%% ---- leases

-spec serve([budget_core:want()], #ledger{}) -> #ledger{}.
serve(Wants, L = #ledger{open = true}) ->
    case save(turn(L)) of
        #ledger{unsaved = []} = L1 ->
            lend(Wants, length(Wants) * 8, L1);
        L1 ->
            lists:foreach(fun({Id, _}) -> answer(Id, unavailable, L1) end, Wants),
            L1
    end;
serve(Wants, L) ->
    case begun(L) of
        #ledger{open = true} = L1 ->
            serve(Wants, L1);
        L1 ->
            lists:foreach(fun({Id, _}) -> answer(Id, unavailable, L1) end, Wants),
            L1
    end.

%% An account that is not known here is tried as if it were new; the store knows better, and says so.
-spec lend([budget_core:want()], non_neg_integer(), #ledger{}) -> #ledger{}.
lend(Wants, Tries, L = #ledger{tenant = Tenant, rows = Rows}) ->
    Now = now_ms(),
    {Grants, Answers} = budget_core:plan(Wants, Rows, Now),
    Changes = [#{account => Account, window_ms => budget_core:window_ms(Account, Now), spent => 0, lent => Amount, limit => Limit}
               || {Account, {Amount, Limit}} <- maps:to_list(Grants)],
    case write(Changes, L) of
        {ok, Written} ->
            New = maps:from_list([{Account, row(Row, Rows)} || {Account, _, _, _} = Row <- Written]),
            _ = native(fun(P) -> agent_native:budget_grant(P, Tenant, [{A, Amount} || {A, {Amount, _}} <- maps:to_list(Grants)]) end),
            lists:foreach(fun({Id, Answer}) -> answer(Id, Answer, L) end, Answers),
            L#ledger{rows = maps:merge(Rows, New)};
        {error, #{reason := budget_exhausted, metadata := #{<<"account">> := Account, <<"spent_pico">> := Spent, <<"lent_pico">> := Lent}}}
          when Tries > 0 ->
            Row = #{window_ms => budget_core:window_ms(Account, Now), spent => binary_to_integer(Spent), lent => binary_to_integer(Lent),
                    rate => 0},
            lend(Wants, Tries - 1, L#ledger{rows = Rows#{Account => Row}});
        {_, Error} ->
            ?LOG_WARNING(#{msg => lease_not_committed, tenant => Tenant, reason => maps:get(reason, Error)},
                         #{domain => [agent, providers]}),
            lists:foreach(fun({Id, _}) -> answer(Id, unavailable, L) end, Answers),
            L
    end.

-spec row({binary(), non_neg_integer(), integer(), integer()}, budget_core:rows()) -> budget_core:row().
row({Account, Window, Spent, Lent}, Rows) ->
    Rate = case Rows of #{Account := #{rate := R}} -> R; #{} -> 0 end,
    #{window_ms => Window, spent => Spent, lent => Lent, rate => Rate}.

-spec answer(non_neg_integer(), ok | unavailable | budget_core:refusal(), #ledger{}) -> ok.
answer(0, _, _) ->
    ok;
answer(Id, Answer, #ledger{tenant = Tenant}) ->
    _ = native(fun(P) -> agent_native:budget_answer(P, Tenant, Id, Answer) end),
    ok.

%% ---- what was spent

-spec settle(changed | all, #ledger{}) -> #ledger{}.
settle(Which, L = #ledger{tenant = Tenant}) ->
    case native(fun(P) -> agent_native:budget_sums(P, Tenant, Which) end) of
        Sums when is_list(Sums) -> save(lists:foldl(fun sum/2, L, Sums));
        _ -> L
    end.

-spec sum({binary(), integer(), integer(), boolean()}, #ledger{}) -> #ledger{}.
sum({Account, Open, _Reserved, Idle}, L = #ledger{rows = Rows}) ->
    case Rows of
        #{Account := #{lent := Lent}} when Idle -> give_back(Account, spent(Account, Lent - Open, L));
        #{Account := #{lent := Lent}} -> spent(Account, Lent - Open, L);
        #{} -> L
    end.

%% So much of a lease is gone for good.
-spec spent(budget_core:account(), integer(), #ledger{}) -> #ledger{}.
spent(Account, Delta, L = #ledger{rows = Rows}) ->
    #{Account := #{spent := Spent, lent := Lent, rate := Rate} = Row} = Rows,
    %% Of a second, the last one most.
    New = Row#{spent := Spent + Delta, lent := Lent - Delta, rate := (Rate * 3 + max(0, Delta) * (1000 div ?TICK_MS)) div 4},
    change(Account, Delta, -Delta, L#ledger{rows = Rows#{Account := New}}).

%% Nobody uses it: what is free of it is no longer lent.
-spec give_back(budget_core:account(), #ledger{}) -> #ledger{}.
give_back(Account, L = #ledger{tenant = Tenant}) ->
    case native(fun(P) -> agent_native:budget_take(P, Tenant, Account) end) of
        Taken when is_integer(Taken) ->
            L1 = #ledger{rows = Rows} = returned(Account, Taken, L),
            case Rows of
                #{Account := #{lent := 0}} -> L1#ledger{rows = maps:remove(Account, Rows)};
                #{} -> L1
            end;
        _ ->
            L
    end.

-spec returned(budget_core:account(), non_neg_integer(), #ledger{}) -> #ledger{}.
returned(Account, Taken, L = #ledger{rows = Rows}) ->
    #{Account := #{lent := Lent} = Row} = Rows,
    change(Account, 0, -Taken, L#ledger{rows = Rows#{Account := Row#{lent := Lent - Taken}}}).

-spec change(budget_core:account(), integer(), integer(), #ledger{}) -> #ledger{}.
change(_, 0, 0, L) ->
    L;
change(Account, Spent, Lent, L = #ledger{rows = Rows, unsaved = Unsaved}) ->
    #{Account := #{window_ms := Window}} = Rows,
    L#ledger{unsaved = [#{account => Account, window_ms => Window, spent => Spent, lent => Lent} | Unsaved]}.

%% A window has turned: what its calls hold is lent by the new one.
-spec turn(#ledger{}) -> #ledger{}.
turn(L = #ledger{rows = Rows}) ->
    Now = now_ms(),
    Old = [Account || {Account, #{window_ms := Window}} <- maps:to_list(Rows), Window =/= budget_core:window_ms(Account, Now)],
    case Old of
        [] -> L;
        _ -> lists:foldl(fun(Account, Acc) -> turn(Account, Now, Acc) end, settle(all, L), Old)
    end.

-spec turn(budget_core:account(), integer(), #ledger{}) -> #ledger{}.
turn(Account, Now, L0) ->
    L1 = give_back(Account, L0),
    case L1#ledger.rows of
        #{Account := #{lent := Held} = Row} = Rows ->
            L2 = change(Account, 0, -Held, L1),
            New = Row#{window_ms := budget_core:window_ms(Account, Now), spent := 0, lent := Held},
            change(Account, 0, Held, L2#ledger{rows = Rows#{Account := New}});
        _ ->
            L1
    end.

%% ---- store and calls

%% Offered again until the store has it: whether an answer that was lost meant "done" is read back.
-spec save(#ledger{}) -> #ledger{}.
save(L = #ledger{unsaved = []}) ->
    L;
save(L = #ledger{unsaved = Unsaved}) ->
    case write(lists:reverse(Unsaved), L) of
        {ok, _} -> L#ledger{unsaved = []};
        _ -> L
    end.

%% Whether a lost answer meant "done" nobody says: the next ledger compares what the store has with what the calls hold.
-spec write([map()], #ledger{}) -> {ok, [tuple()]} | {error, agent_error:t()}.
write([], _) ->
    {ok, []};
write(Changes, #ledger{tenant = Tenant}) ->
    case agent_store:write({ledger, Tenant, Changes}) of
        {ok, {ledger, Rows}} -> {ok, Rows};
        {error, Error} -> {error, Error};
        {unknown, _} -> exit({shutdown, commit_ambiguous})
    end.

-spec native(fun((reference()) -> Answer)) -> Answer | {error, native_down}.
native(Fun) ->
    case native_subsystem:handle(providers) of
        {ok, P} -> Fun(P);
        {error, native_down} -> {error, native_down}
    end.

-spec now_ms() -> integer().
now_ms() ->
    erlang:system_time(millisecond).

%% An ordered end knows what was spent: only what calls under way hold stays lent, and counts as spent at the next start.
-spec terminate(term(), #ledger{}) -> ok.
terminate(shutdown, L) ->
    L1 = settle(all, L),
    _ = save(lists:foldl(fun give_back/2, L1, maps:keys(L1#ledger.rows))),
    ok;
terminate(_, _) ->
    ok.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.
