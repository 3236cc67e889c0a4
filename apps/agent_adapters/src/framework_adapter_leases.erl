%% @doc Who gets which worker: the pool's decisions, pure, with effects as data.
%%
%% A worker belongs to one key, `{Framework, AgentId, Version, Tenant}', for its life, and has as many slots as its agent's `concurrency'
%% says: an idle worker is taken first, then the one with the fewest tasks, and another one is started only where no slot is left. A
%% request that wants to be `alone' has all slots of one. Requests of a key wait in order.
%%
%% When a framework is at its maximum, an idle worker of another key is ended to make room; a busy one never is, but it takes no more once
%% a key without a worker was passed over so often.
%%
%% A subtask of a running task (`depth' above 0) has as many more workers for each level, and goes before what is less deep: the workers
%% above it wait for it, so it must not wait for them. What is less deep never holds the places of a level below it: a worker that holds
%% nothing of its depth or above is granted to a request only while fewer others are leased than its own level may have.
-module(framework_adapter_leases).

-export([new/1]).
-export([request/3]).
-export([warm/4]).
-export([cancel/2]).
-export([ready/2]).
-export([released/3]).
-export([retiring/2]).
-export([ended/3]).
-export([refuse/3]).
-export([extra/3]).
-export([workers/1]).
-export([waiting/1]).

-export_type([leases/0, key/0, request/0, effect/0, limits/0]).

%% Failed starts in a row after which the waiting requests of a key are refused.
-define(MAX_START_FAILURES, 3).
%% Requests of other keys that are granted while a key without a worker waits; then a worker of theirs makes room for it.
-define(MAX_PASSED, 16).

-type key() :: {Framework :: binary(), AgentId :: binary(), Version :: term(), Tenant :: binary()}.
-type request() :: #{ref := reference(), owner := pid(), task_id := binary(), agent := map(), depth => non_neg_integer(),
                     alone => boolean(), _ => _}.
-type limits() :: #{max_per_framework := pos_integer(), max_waiting := pos_integer()}.
-type effect() ::
    {grant, WorkerId :: binary(), request()}
    | {start, WorkerId :: binary(), key(), Agent :: map()}
    | {stop, WorkerId :: binary()}
    %% It ends once its tasks have.
    | {retire, WorkerId :: binary()}
    | {refuse, request(), queue_full | refusal()}.
-type refusal() :: {worker_start_failed, binary()} | {unavailable, agent_error:t()}.

-record(w, {
    key :: key(),
    state = starting :: starting | ready | retiring | stopping,
    slots = 1 :: pos_integer(),
    %% Leases, each with the depth of its task.
    held = #{} :: #{reference() => non_neg_integer()},
    alone = false :: boolean()
}).
-record(leases, {
    limits :: limits(),
    workers = #{} :: #{binary() => #w{}},
    %% Ready workers with a slot left, the one that was used last first.
    open = #{} :: #{key() => [binary()]},
    queues = #{} :: #{key() => queue:queue(request())},
    failures = #{} :: #{key() => pos_integer()},
    %% How often a key without a worker was passed over.
    passed = #{} :: #{key() => pos_integer()},
    %% Workers of other machines by environment, beside those that this one may have; below 0 where it may have none.
    extra = #{} :: #{binary() => integer()},
    waiting = 0 :: non_neg_integer(),
    last_id = 0 :: non_neg_integer()
}).
-opaque leases() :: #leases{}.

%% @doc An empty pool.
-spec new(limits()) -> leases().
new(Limits) ->
    #leases{limits = Limits}.

%% @doc A task wants a worker of `Key'.
-spec request(key(), request(), leases()) -> {[effect()], leases()}.
request(Key, Request, L = #leases{queues = Queues, waiting = N, limits = #{max_waiting := Max}}) ->
    Queue = maps:get(Key, Queues, queue:new()),
    %% What waits goes first, unless it is less deep.
    IsNext = case queue:peek(Queue) of {value, First} -> depth(Request) > depth(First); empty -> true end,
    case IsNext andalso place(Key, Request, L) of
        {ok, Id} ->
            {[{grant, Id, Request}], pass(element(1, Key), hold(Id, Request, L))};
        _ when N >= Max ->
            {[{refuse, Request, queue_full}], L};
        _ ->
            grow(Key, L#leases{queues = Queues#{Key => enqueue(Request, Queue)}, waiting = N + 1})
    end.

%% A worker of the key with a slot for it: an idle one, or the one with the fewest tasks.
-spec place(key(), request(), leases()) -> {ok, binary()} | none.
place(Key, Request, L = #leases{open = Open, workers = Workers}) ->
    Fits = [{map_size(Held), Id} || Id <- maps:get(Key, Open, []), #w{held = Held} <- [maps:get(Id, Workers)],
                                    fits(Id, Request, L)],
    case Fits of
        [] -> none;
        [{N, Id} | Rest] ->
            {_, Least} = lists:foldl(fun({M, I}, {Few, _}) when M < Few -> {M, I}; (_, Best) -> Best end, {N, Id}, Rest),
            {ok, Least}
    end.

%% Whether a worker with a slot left may have it at the level of the request.
-spec fits(binary(), request(), leases()) -> boolean().
fits(Id, Request, L = #leases{workers = Workers}) ->
    #w{key = {Framework, _, _, _}, held = Held} = W = maps:get(Id, Workers),
    Depth = depth(Request),
    case is_alone(Request) andalso map_size(Held) > 0 of
        true -> false;
        false ->
            lists:any(fun(D) -> D =< Depth end, maps:values(Held))
                orelse leased(Framework, L) - is_leased(W) < room(Request, max_workers(Framework, L))
    end.

%% How many workers there may be at the level of a request. One that wants to be alone holds up the queue of its key: it may have one more.
-spec room(request(), integer()) -> integer().
room(Request, Max) when Max > 0 ->
    Max * (depth(Request) + 1) + case is_alone(Request) of true -> 1; false -> 0 end;
room(_, _) ->
    0.

-spec leased(binary(), leases()) -> non_neg_integer().
leased(Framework, L) ->
    places([W || W <- of_framework(Framework, L), is_leased(W) =:= 1], max_workers(Framework, L)).

-spec is_leased(#w{}) -> 0 | 1.
is_leased(#w{held = Held}) -> min(1, map_size(Held)).

-spec is_alone(request()) -> boolean().
is_alone(Request) ->
    maps:get(alone, Request, false).

-spec hold(binary(), request(), leases()) -> leases().
hold(Id, #{ref := Ref} = Request, L = #leases{workers = Workers}) ->
    W = #w{held = Held} = maps:get(Id, Workers),
    opened(Id, L#leases{workers = Workers#{Id => W#w{held = Held#{Ref => depth(Request)}, alone = is_alone(Request)}}}).

%% Keeps the list of workers with a slot left: this one is at its head, or not in it.
-spec opened(binary(), leases()) -> leases().
opened(Id, L = #leases{workers = Workers, open = Open}) ->
    #w{key = Key} = W = maps:get(Id, Workers),
    Others = lists:delete(Id, maps:get(Key, Open, [])),
    L#leases{open = put_open(Key, case has_slot(W) of true -> [Id | Others]; false -> Others end, Open)}.

-spec has_slot(#w{}) -> boolean().
has_slot(#w{state = ready, alone = false, held = Held, slots = Slots}) -> map_size(Held) < Slots;
has_slot(#w{}) -> false.

%% @doc An agent shall have so many workers before anybody asks for one, as far as there is room.
-spec warm(key(), Agent :: map(), pos_integer(), leases()) -> {[effect()], leases()}.
warm({Framework, _, _, _} = Key, Agent, N, L = #leases{workers = Workers}) ->
    Have = length([x || #w{key = K} <- maps:values(Workers), K =:= Key]),
    Room = max_workers(Framework, L) - length(of_framework(Framework, L)),
    lists:foldl(fun(_, {Effects, Acc = #leases{workers = All}}) ->
                    {Id, Acc1} = new_id(Framework, Acc),
                    {[{start, Id, Key, Agent} | Effects], Acc1#leases{workers = All#{Id => new_worker(Key, Agent)}}}
                end, {[], L}, lists:seq(1, max(0, min(N - Have, Room)))).

-spec enqueue(request(), queue:queue(request())) -> queue:queue(request()).
enqueue(Request, Queue) ->
    case depth(Request) of
        0 ->
            queue:in(Request, Queue);
        Depth ->
            {Before, Behind} = lists:splitwith(fun(R) -> depth(R) >= Depth end, queue:to_list(Queue)),
            queue:from_list(Before ++ [Request | Behind])
    end.

-spec depth(request()) -> non_neg_integer().
depth(Request) ->
    maps:get(depth, Request, 0).

%% @doc A request that waits is taken back.
-spec cancel(reference(), leases()) -> {[effect()], leases()}.
cancel(Ref, L = #leases{queues = Queues, open = Open}) ->
    Queues1 = maps:filtermap(
        fun(_, Q) ->
            Q1 = queue:filter(fun(#{ref := R}) -> R =/= Ref end, Q),
            case queue:is_empty(Q1) of true -> false; false -> {true, Q1} end
        end, Queues),
    %% What stood behind it may fit where it did not.
    Changed = [K || K <- maps:keys(Queues1), map_get(K, Queues1) =/= map_get(K, Queues)],
    served([Id || K <- Changed, Id <- maps:get(K, Open, [])],
           L#leases{queues = Queues1, waiting = count(Queues1), passed = maps:with(maps:keys(Queues1), L#leases.passed)}).

-spec served([binary()], leases()) -> {[effect()], leases()}.
served(Ids, L) ->
    lists:foldl(fun(Id, {Effects, Acc}) -> {More, Acc1} = fill(Id, Acc), {Effects ++ More, Acc1} end, {[], L}, Ids).

%% @doc A worker has started.
-spec ready(binary(), leases()) -> {[effect()], leases()}.
ready(Id, L = #leases{workers = Workers, failures = Failures}) ->
    case Workers of
        #{Id := W = #w{key = Key, state = starting}} ->
            %% Its first tasks it gets in any case, whoever else waits.
            L1 = opened(Id, L#leases{failures = maps:remove(Key, Failures), workers = Workers#{Id => W#w{state = ready}}}),
            case fill(Id, L1) of
                {[], L2} -> unserved(Id, element(1, Key), L2);
                Filled -> Filled
            end;
        #{} ->
            {[], L}
    end.

%% @doc A task has given its slot back.
-spec released(binary(), reference(), leases()) -> {[effect()], leases()}.
released(Id, Ref, L = #leases{workers = Workers}) ->
    case Workers of
        #{Id := W = #w{held = Held}} when is_map_key(Ref, Held) ->
            serve(Id, L#leases{workers = Workers#{Id => W#w{held = maps:remove(Ref, Held), alone = false}}});
        #{} ->
            {[], L}
    end.

%% @doc A worker takes no more tasks, and ends once those that it has are done.
-spec retiring(binary(), leases()) -> leases().
retiring(Id, L = #leases{workers = Workers}) ->
    case Workers of
        #{Id := W = #w{state = ready}} -> opened(Id, L#leases{workers = Workers#{Id => W#w{state = retiring}}});
        #{} -> L
    end.

%% @doc A worker is no more. `start_failed' with a text when it never became ready.
-spec ended(binary(), normal | {start_failed, binary()}, leases()) -> {[effect()], leases()}.
ended(Id, How, L = #leases{workers = Workers}) ->
    case maps:take(Id, Workers) of
        error ->
            {[], L};
        {#w{key = Key}, Workers1} ->
            Open = put_open(Key, lists:delete(Id, maps:get(Key, L#leases.open, [])), L#leases.open),
            after_end(Key, How, L#leases{workers = Workers1, open = Open})
    end.

-spec after_end(key(), normal | {start_failed, binary()}, leases()) -> {[effect()], leases()}.
after_end(Key, {start_failed, Text}, L = #leases{failures = Failures}) ->
    case maps:get(Key, Failures, 0) + 1 of
        N when N >= ?MAX_START_FAILURES ->
            {Refused, L1} = refuse(Key, {worker_start_failed, Text}, L#leases{failures = maps:remove(Key, Failures)}),
            {Grown, L2} = grow_all(element(1, Key), L1),
            {Refused ++ Grown, L2};
        N ->
            grow_all(element(1, Key), L#leases{failures = Failures#{Key => N}})
    end;
after_end(Key, normal, L) ->
    grow_all(element(1, Key), L).

%% @doc So many workers of an environment may be there beside those of this machine.
-spec extra(binary(), integer(), leases()) -> {[effect()], leases()}.
extra(Env, N, L = #leases{extra = Extra, queues = Queues}) ->
    Frameworks = lists:usort([element(1, K) || K <- maps:keys(Queues), framework_adapter_env:environment(element(1, K)) =:= Env]),
    lists:foldl(fun(F, {Effects, Acc}) -> {E, Acc1} = grow_all(F, Acc), {Effects ++ E, Acc1} end,
                {[], L#leases{extra = Extra#{Env => N}}}, Frameworks).

%% @doc Refuses what waits for a key.
-spec refuse(key(), refusal(), leases()) -> {[effect()], leases()}.
refuse(Key, Why, L = #leases{queues = Queues, waiting = N}) ->
    Requests = queue:to_list(maps:get(Key, Queues, queue:new())),
    {[{refuse, R, Why} || R <- Requests],
     L#leases{queues = maps:remove(Key, Queues), passed = maps:remove(Key, L#leases.passed), waiting = N - length(Requests)}}.

%% @doc Ids with key and state.
-spec workers(leases()) -> [{binary(), key(), starting | idle | leased | stopping}].
workers(#leases{workers = Workers}) ->
    [{Id, Key, case W of
                   #w{state = ready} when map_size(W#w.held) =:= 0 -> idle;
                   #w{state = State} when State =:= ready; State =:= retiring -> leased;
                   #w{state = State} -> State
               end} || {Id, W = #w{key = Key}} <- maps:to_list(Workers)].

%% @doc Requests that wait.
-spec waiting(leases()) -> non_neg_integer().
waiting(#leases{waiting = N}) ->
    N.

%% A worker that has given a slot back has one for what waits, makes room, or is one too many.
-spec serve(binary(), leases()) -> {[effect()], leases()}.
serve(Id, L0 = #leases{workers = Workers}) ->
    #w{key = {Framework, _, _, _}, state = State} = maps:get(Id, Workers),
    L = opened(Id, L0),
    case State of
        ready ->
            case passed_over(Framework, L) of
                true ->
                    make_room(Id, L);
                false ->
                    case fill(Id, L) of
                        {[], L1} -> unserved(Id, Framework, L1);
                        Filled -> Filled
                    end
            end;
        _ ->
            {[], L}
    end.

%% Its slots are given to what waits for its key.
-spec fill(binary(), leases()) -> {[effect()], leases()}.
fill(Id, L = #leases{workers = Workers}) ->
    #w{key = {Framework, _, _, _} = Key} = maps:get(Id, Workers),
    case next(Id, Key, L) of
        {Request, L1} ->
            Held = #leases{open = Open} = pass(Framework, hold(Id, Request, L1)),
            %% Those behind one that is alone may fit where it did not.
            {Effects, L2} = served(case is_alone(Request) of true -> maps:get(Key, Open, []); false -> [Id] end, Held),
            {[{grant, Id, Request} | Effects], L2};
        none ->
            {[], L}
    end.

%% The first that waits for the key, if this worker has a slot for it.
-spec next(binary(), key(), leases()) -> {request(), leases()} | none.
next(Id, Key, L = #leases{queues = Queues, waiting = N, workers = Workers}) ->
    case has_slot(maps:get(Id, Workers)) andalso Queues of
        #{Key := Queue} ->
            {{value, Request}, Rest} = queue:out(Queue),
            Others = case queue:is_empty(Rest) of true -> maps:remove(Key, Queues); false -> Queues#{Key => Rest} end,
            case fits(Id, Request, L) of
                true -> {Request, L#leases{queues = Others, waiting = N - 1}};
                false -> none
            end;
        _ ->
            none
    end.

-spec unserved(binary(), binary(), leases()) -> {[effect()], leases()}.
unserved(Id, Framework, L = #leases{workers = Workers}) ->
    #w{held = Held} = maps:get(Id, Workers),
    Max = max_workers(Framework, L),
    case map_size(Held) =:= 0 andalso places(of_framework(Framework, L), Max) > Max of
        true ->
            %% It was one of those for subtasks.
            stop(Id, L);
        false ->
            grow_all(Framework, L)
    end.

%% Keys of the framework that wait without a worker: those that see another one's request granted.
-spec pass(binary(), leases()) -> leases().
pass(_, L = #leases{queues = Queues}) when map_size(Queues) =:= 0 ->
    L;
pass(Framework, L = #leases{queues = Queues, passed = Passed}) ->
    Served = [K || #w{key = K, state = S} <- of_framework(Framework, L), S =/= stopping],
    Hungry = [K || K <- maps:keys(Queues), element(1, K) =:= Framework, not lists:member(K, Served)],
    L#leases{passed = lists:foldl(fun(K, Acc) -> maps:update_with(K, fun(N) -> N + 1 end, 1, Acc) end,
                                  maps:with(maps:keys(Queues), Passed), Hungry)}.

%% Whether a worker must go for a key that was passed over too often; one at a time does.
-spec passed_over(binary(), leases()) -> boolean().
passed_over(Framework, L = #leases{passed = Passed, queues = Queues}) ->
    lists:any(fun({K, N}) -> element(1, K) =:= Framework andalso N >= ?MAX_PASSED andalso is_map_key(K, Queues) end, maps:to_list(Passed))
        andalso not lists:any(fun(#w{state = S}) -> S =:= stopping orelse S =:= retiring end, of_framework(Framework, L)).

-spec make_room(binary(), leases()) -> {[effect()], leases()}.
make_room(Id, L = #leases{workers = Workers}) ->
    case maps:get(Id, Workers) of
        #w{held = Held} when map_size(Held) =:= 0 -> stop(Id, L);
        #w{} -> {[{retire, Id}], retiring(Id, L)}
    end.

-spec stop(binary(), leases()) -> {[effect()], leases()}.
stop(Id, L = #leases{workers = Workers}) ->
    W = maps:get(Id, Workers),
    {[{stop, Id}], opened(Id, L#leases{workers = Workers#{Id => W#w{state = stopping}}})}.

-spec of_framework(binary(), leases()) -> [#w{}].
of_framework(Framework, #leases{workers = Workers}) ->
    [W || {_, W = #w{key = K}} <- maps:to_list(Workers), element(1, K) =:= Framework].

-spec max_workers(binary(), leases()) -> integer().
max_workers(Framework, #leases{extra = Extra, limits = #{max_per_framework := Local}}) ->
    Local + maps:get(framework_adapter_env:environment(Framework), Extra, 0).

%% Every key of the framework that waits may now have room, the one that was passed over most first.
-spec grow_all(binary(), leases()) -> {[effect()], leases()}.
grow_all(_Framework, L = #leases{queues = Queues}) when map_size(Queues) =:= 0 ->
    {[], L};
grow_all(Framework, L = #leases{queues = Queues, passed = Passed}) ->
    Keys = lists:sort([{-maps:get(K, Passed, 0), K} || K <- maps:keys(Queues), element(1, K) =:= Framework]),
    lists:foldl(fun({_, K}, {Effects, Acc}) -> {E, Acc1} = grow(K, Acc), {Effects ++ E, Acc1} end, {[], L}, Keys).

%% Starts a worker for a key that waits, or makes room for one.
-spec grow(key(), leases()) -> {[effect()], leases()}.
grow(Key, L = #leases{workers = Workers, queues = Queues}) ->
    Framework = element(1, Key),
    Mine = of_framework(Framework, L),
    Queue = maps:get(Key, Queues, queue:new()),
    HeadIsAlone = case queue:peek(Queue) of {value, Head} -> is_alone(Head); empty -> false end,
    Coming = lists:sum([case HeadIsAlone of true -> 1; false -> S end || #w{key = K, state = starting, slots = S} <- Mine, K =:= Key]),
    case queue:len(Queue) > Coming andalso queue:peek(Queue) of
        false ->
            {[], L};
        {value, #{agent := Agent} = First} ->
            Max = max_workers(Framework, L),
            case places(Mine, Max) < room(First, Max) of
                true ->
                    {Id, L1} = new_id(Framework, L),
                    {[{start, Id, Key, Agent}], L1#leases{workers = Workers#{Id => new_worker(Key, Agent)},
                                                          passed = maps:remove(Key, L1#leases.passed)}};
                false ->
                    evict(Framework, Key, Mine, L)
            end
    end.

%% Places that workers take. One that only ends its last tasks takes none, for as many as there may be: they may be long.
-spec places([#w{}], integer()) -> non_neg_integer().
places(Mine, Max) ->
    Retiring = length([x || #w{state = retiring} <- Mine]),
    length(Mine) - min(Retiring, max(0, Max)).

-spec new_worker(key(), map()) -> #w{}.
new_worker({Framework, _, _, _} = Key, Agent) ->
    #w{key = Key, slots = framework_adapter_env:concurrency(Framework, Agent)}.

%% "langchain-3": an operator can say it. Numbers are not used again while the node runs.
-spec new_id(binary(), leases()) -> {binary(), leases()}.
new_id(Framework, L = #leases{last_id = N}) ->
    Name = binary:replace(Framework, [<<":">>, <<"/">>], <<"-">>, [global]),
    {<<Name/binary, "-", (integer_to_binary(N + 1))/binary>>, L#leases{last_id = N + 1}}.

-spec evict(binary(), key(), [#w{}], leases()) -> {[effect()], leases()}.
evict(Framework, Key, Mine, L = #leases{open = Open, workers = Workers}) ->
    IsStopping = lists:any(fun(#w{state = S}) -> S =:= stopping end, Mine),
    %% The one of each key that was idle longest.
    Idle = [lists:last(Ids) || {K, Open1} <- maps:to_list(Open), element(1, K) =:= Framework, K =/= Key,
                               Ids = [_ | _] <- [[Id || Id <- Open1, is_leased(maps:get(Id, Workers)) =:= 0]]],
    case Idle of
        [Oldest | _] when not IsStopping -> stop(Oldest, L);
        _ -> {[], L}
    end.

-spec put_open(key(), [binary()], #{key() => [binary()]}) -> #{key() => [binary()]}.
put_open(Key, [], Open) -> maps:remove(Key, Open);
put_open(Key, Ids, Open) -> Open#{Key => Ids}.

-spec count(#{key() => queue:queue(request())}) -> non_neg_integer().
count(Queues) ->
    maps:fold(fun(_, Q, N) -> N + queue:len(Q) end, 0, Queues).
