%% @doc The order of waiting tasks, pure: fair queueing over tenants, priorities inside.
%%
%% Each tenant has a time of its own, which a task that it is given moves on by what its tasks took of late; the tenant whose
%% time is earliest is next. So two tenants share the slots by time, not by number, and one with a million waiting tasks
%% delays nobody else, not even by a turn of several tasks. Whoever comes anew begins at the time of the last one that was
%% served: what was not used is not saved up. Inside a tenant the highest priority goes first, except that every eighth time
%% the oldest of all goes, so that none starves.
-module(run_queue_core).

-export([new/0]).
-export([push/2]).
-export([pop/1]).
-export([remove/2]).
-export([charge/3]).
-export([size/1]).
-export([member/2]).

-export_type([queue/0, item/0]).

%% Cost of a task is kept between these, in ms.
-define(MIN_COST_MS, 1).
-define(MAX_COST_MS, 10000).
%% Cost of a tenant's first tasks.
-define(FIRST_COST_MS, 100).
%% One pop in so many takes the oldest of all priorities.
-define(OLDEST_EVERY, 8).

-type item() :: #{task_id := binary(), tenant := binary(), priority := 0..9, _ => _}.

%% A tenant's time, a number that parts equal ones, and its name.
-type place() :: {non_neg_integer(), non_neg_integer(), binary()}.
-record(tenant, {
    levels = #{} :: #{0..9 => queue:queue({non_neg_integer(), binary()})},
    place :: place(),
    pops = 0 :: non_neg_integer(),
    waiting = 0 :: non_neg_integer()
}).
-record(queue, {
    items = #{} :: #{binary() => item()},
    tenants = #{} :: #{binary() => #tenant{}},
    order = gb_sets:new() :: gb_sets:set(place()),
    %% Time of the tenant that was served last.
    clock = 0 :: non_neg_integer(),
    %% Times of tenants that wait for nothing now and are ahead of the clock.
    ahead = #{} :: #{binary() => non_neg_integer()},
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
    {T, Order} = case Tenants of
                     #{Name := Old} ->
                         {Old, Q#queue.order};
                     #{} ->
                         Place = {max(Q#queue.clock, maps:get(Name, Q#queue.ahead, 0)), N, Name},
                         {#tenant{place = Place}, gb_sets:add_element(Place, Q#queue.order)}
                 end,
    Level = queue:in({N, Id}, maps:get(P, T#tenant.levels, queue:new())),
    T1 = T#tenant{levels = (T#tenant.levels)#{P => Level}, waiting = T#tenant.waiting + 1},
    Q#queue{items = Items#{Id => Item}, tenants = Tenants#{Name => T1}, order = Order,
            ahead = maps:remove(Name, Q#queue.ahead), next = N + 1}.

%% @doc The next task.
-spec pop(queue()) -> {item(), queue()} | empty.
pop(#queue{items = Items}) when map_size(Items) =:= 0 ->
    empty;
pop(Q = #queue{order = Order, tenants = Tenants}) ->
    {{Time, _, Name}, Rest} = gb_sets:take_smallest(Order),
    case Tenants of
        #{Name := #tenant{waiting = 0}} ->
            %% Emptied by removals.
            pop(leave(Name, Time, Q#queue{order = Rest}));
        #{Name := T} ->
            take(Name, T, Q#queue{order = Rest, clock = Time})
    end.

%% Its time is remembered, so that coming and going gains nothing.
-spec leave(binary(), non_neg_integer(), queue()) -> queue().
leave(Name, Time, Q = #queue{tenants = Tenants, ahead = Ahead, clock = Clock}) ->
    Ahead1 = case Time > Clock of true -> Ahead#{Name => Time}; false -> Ahead end,
    Q#queue{tenants = maps:remove(Name, Tenants), ahead = Ahead1}.

-spec take(binary(), #tenant{}, queue()) -> {item(), queue()}.
take(Name, T = #tenant{levels = Levels, pops = Pops}, Q = #queue{items = Items, tenants = Tenants, clock = Clock, next = N}) ->
    Live = maps:filtermap(fun(_, L) -> case drop_removed(L, Items) of
                                           {[], _} -> false;
                                           {[_], L1} -> {true, L1}
                                       end end, Levels),
    P = case Pops rem ?OLDEST_EVERY of
            Turn when Turn =:= ?OLDEST_EVERY - 1 -> oldest(Live);
            _ -> lists:max(maps:keys(Live))
        end,
    {{value, {_, Id}}, Level} = queue:out(maps:get(P, Live)),
    {Item, Items1} = maps:take(Id, Items),
    Time = Clock + maps:get(Name, Q#queue.costs, ?FIRST_COST_MS),
    Place = {Time, N, Name},
    T1 = T#tenant{levels = Live#{P => Level}, pops = Pops + 1, waiting = T#tenant.waiting - 1, place = Place},
    Q1 = Q#queue{items = Items1, next = N + 1},
    case T1#tenant.waiting of
        0 -> {Item, leave(Name, Time, Q1)};
        _ -> {Item, Q1#queue{tenants = Tenants#{Name => T1}, order = gb_sets:add_element(Place, Q1#queue.order)}}
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
