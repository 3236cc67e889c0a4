%% @doc The order of waiting tasks, pure: deficit round robin over tenants, priorities inside.
%%
%% Each tenant on the ring gets a quantum of running time per round; a task costs what its tenant's tasks took of late.
%% So two tenants share the slots by time, not by number, and one with a million waiting tasks delays nobody else. Inside
%% a tenant the highest priority goes first, except that every eighth time the oldest of all goes, so that none starves.
-module(run_queue_core).

-export([new/0]).
-export([push/2]).
-export([pop/1]).
-export([remove/2]).
-export([charge/3]).
-export([size/1]).
-export([member/2]).

-export_type([queue/0, item/0]).

%% Running time that a tenant may use in a round, in ms.
-define(QUANTUM_MS, 1000).
%% Cost of a task is kept between these, in ms, so that a pop needs at most ten rounds.
-define(MIN_COST_MS, 1).
-define(MAX_COST_MS, 10000).
%% Cost of a tenant's first tasks.
-define(FIRST_COST_MS, 100).
%% One pop in so many takes the oldest of all priorities.
-define(OLDEST_EVERY, 8).

-type item() :: #{task_id := binary(), tenant := binary(), priority := 0..9, _ => _}.

-record(tenant, {
    levels = #{} :: #{0..9 => queue:queue({non_neg_integer(), binary()})},
    deficit = 0 :: integer(),
    pops = 0 :: non_neg_integer(),
    waiting = 0 :: non_neg_integer()
}).
-record(queue, {
    items = #{} :: #{binary() => item()},
    tenants = #{} :: #{binary() => #tenant{}},
    ring = queue:new() :: queue:queue(binary()),
    costs = #{} :: #{binary() => pos_integer()},
    next = 0 :: non_neg_integer()
}).
-opaque queue() :: #queue{}.

%% @doc Nothing waits.
-spec new() -> queue().
new() ->
    #queue{}.

%% @doc Tasks that wait.
-spec size(queue()) -> non_neg_integer().
size(#queue{items = Items}) ->
    map_size(Items).

%% @doc Whether a task waits here.
-spec member(binary(), queue()) -> boolean().
member(TaskId, #queue{items = Items}) ->
    is_map_key(TaskId, Items).

%% @doc A task waits from now on; one that waits already stays where it is.
-spec push(item(), queue()) -> queue().
push(#{task_id := Id}, Q = #queue{items = Items}) when is_map_key(Id, Items) ->
    Q;
push(#{task_id := Id, tenant := Name, priority := P} = Item, Q = #queue{items = Items, tenants = Tenants, next = N}) ->
    {T, Ring} = case Tenants of
                    #{Name := Old} -> {Old, Q#queue.ring};
                    #{} -> {#tenant{}, queue:in(Name, Q#queue.ring)}
                end,
    Level = queue:in({N, Id}, maps:get(P, T#tenant.levels, queue:new())),
    T1 = T#tenant{levels = (T#tenant.levels)#{P => Level}, waiting = T#tenant.waiting + 1},
    Q#queue{items = Items#{Id => Item}, tenants = Tenants#{Name => T1}, ring = Ring, next = N + 1}.

%% @doc The next task.
-spec pop(queue()) -> {item(), queue()} | empty.
pop(#queue{items = Items}) when map_size(Items) =:= 0 ->
    empty;
pop(Q = #queue{ring = Ring, tenants = Tenants}) ->
    {{value, Name}, Rest} = queue:out(Ring),
    #{Name := T} = Tenants,
    Cost = maps:get(Name, Q#queue.costs, ?FIRST_COST_MS),
    case T of
        #tenant{waiting = 0} ->
            %% Emptied by removals: it leaves the ring and its deficit with it.
            pop(Q#queue{ring = Rest, tenants = maps:remove(Name, Tenants)});
        #tenant{deficit = D} when D < Cost ->
            pop(Q#queue{ring = queue:in(Name, Rest), tenants = Tenants#{Name => T#tenant{deficit = D + ?QUANTUM_MS}}});
        #tenant{deficit = D} ->
            take(Name, T#tenant{deficit = D - Cost}, Q)
    end.

-spec take(binary(), #tenant{}, queue()) -> {item(), queue()} | empty.
take(Name, T = #tenant{levels = Levels, pops = Pops}, Q = #queue{items = Items, tenants = Tenants}) ->
    Live = maps:filtermap(fun(_, L) -> case drop_removed(L, Items) of
                                           {[], _} -> false;
                                           {[_], L1} -> {true, L1}
                                       end end, Levels),
    P = case Pops rem ?OLDEST_EVERY of
            N when N =:= ?OLDEST_EVERY - 1 -> oldest(Live);
            _ -> lists:max(maps:keys(Live))
        end,
    {{value, {_, Id}}, Level} = queue:out(maps:get(P, Live)),
    {Item, Items1} = maps:take(Id, Items),
    T1 = T#tenant{levels = Live#{P => Level}, pops = Pops + 1, waiting = T#tenant.waiting - 1},
    Q1 = Q#queue{items = Items1},
    case T1#tenant.waiting of
        0 -> {Item, Q1#queue{tenants = maps:remove(Name, Tenants), ring = queue:filter(fun(R) -> R =/= Name end, Q1#queue.ring)}};
        _ -> {Item, Q1#queue{tenants = Tenants#{Name => T1}}}
    end.

%% Removed tasks stay in their level until they come to its head.
-spec drop_removed(queue:queue({non_neg_integer(), binary()}), map()) ->
    {[{non_neg_integer(), binary()}], queue:queue({non_neg_integer(), binary()})}.
drop_removed(Level, Items) ->
    case queue:peek(Level) of
        empty -> {[], Level};
        {value, {_, Id} = Head} when is_map_key(Id, Items) -> {[Head], Level};
        {value, _} -> drop_removed(queue:drop(Level), Items)
    end.

-spec oldest(#{0..9 => queue:queue({non_neg_integer(), binary()})}) -> 0..9.
oldest(Levels) ->
    {_, P} = lists:min([{N, P} || {P, L} <- maps:to_list(Levels), {value, {N, _}} <- [queue:peek(L)]]),
    P.

%% @doc Takes a task out, wherever it stands.
-spec remove(binary(), queue()) -> {item(), queue()} | error.
remove(Id, Q = #queue{items = Items, tenants = Tenants}) ->
    case maps:take(Id, Items) of
        error ->
            error;
        {#{tenant := Name} = Item, Items1} ->
            #{Name := T} = Tenants,
            {Item, Q#queue{items = Items1, tenants = Tenants#{Name => T#tenant{waiting = T#tenant.waiting - 1}}}}
    end.

%% @doc A task of the tenant ran so long: its next ones cost a moving average of that.
-spec charge(binary(), non_neg_integer(), queue()) -> queue().
charge(Tenant, RanMs, Q = #queue{costs = Costs}) ->
    Old = maps:get(Tenant, Costs, ?FIRST_COST_MS),
    New = max(?MIN_COST_MS, min(?MAX_COST_MS, (Old * 7 + RanMs) div 8)),
    Q#queue{costs = Costs#{Tenant => New}}.
