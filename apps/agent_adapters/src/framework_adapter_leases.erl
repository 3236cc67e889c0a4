%% @doc Who gets which worker: the pool's decisions, pure, with effects as data.
%%
%% A worker belongs to one key, `{Framework, AgentId, Version, Tenant}', for its life. Requests of a key wait in order. When a
%% framework is at its maximum, an idle worker of another key is ended to make room; a busy one never is.
%%
%% A subtask of a running task (`depth' above 0) has as many more workers for each level, and goes before what is less deep: the workers
%% above it wait for it, so it must not wait for them. What is less deep never holds the places of a level below it: a request is granted
%% only while fewer workers are leased than its own level may have.
-module(framework_adapter_leases).

-export([new/1]).
-export([request/3]).
-export([warm/4]).
-export([cancel/2]).
-export([idle/2]).
-export([ended/3]).
-export([refuse/3]).
-export([extra/3]).
-export([workers/1]).
-export([waiting/1]).

-export_type([leases/0, key/0, request/0, effect/0, limits/0]).

%% Failed starts in a row after which the waiting requests of a key are refused.
-define(MAX_START_FAILURES, 3).

-type key() :: {Framework :: binary(), AgentId :: binary(), Version :: term(), Tenant :: binary()}.
-type request() :: #{ref := reference(), owner := pid(), task_id := binary(), agent := map(), depth => non_neg_integer(), _ => _}.
-type limits() :: #{max_per_framework := pos_integer(), max_waiting := pos_integer()}.
-type effect() ::
    {grant, WorkerId :: binary(), request()}
    | {start, WorkerId :: binary(), key(), Agent :: map()}
    | {stop, WorkerId :: binary()}
    | {refuse, request(), queue_full | refusal()}.
-type refusal() :: {worker_start_failed, binary()} | {unavailable, agent_error:t()}.

-record(w, {key :: key(), state = starting :: starting | idle | leased | stopping}).
-record(leases, {
    limits :: limits(),
    workers = #{} :: #{binary() => #w{}},
    idle = #{} :: #{key() => [binary()]},
    queues = #{} :: #{key() => queue:queue(request())},
    failures = #{} :: #{key() => pos_integer()},
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
request(Key, Request, L = #leases{idle = Idle, waiting = N, limits = #{max_waiting := Max}}) ->
    MayHaveOne = may_have_one(element(1, Key), Request, L),
    case Idle of
        #{Key := [Id | Rest]} when MayHaveOne ->
            {[{grant, Id, Request}], set(Id, leased, L#leases{idle = put_idle(Key, Rest, Idle)})};
        #{} when N >= Max ->
            {[{refuse, Request, queue_full}], L};
        #{} ->
            Queue = enqueue(Request, maps:get(Key, L#leases.queues, queue:new())),
            grow(Key, L#leases{queues = (L#leases.queues)#{Key => Queue}, waiting = N + 1})
    end.

%% @doc An agent shall have so many workers before anybody asks for one, as far as there is room.
-spec warm(key(), Agent :: map(), pos_integer(), leases()) -> {[effect()], leases()}.
warm({Framework, _, _, _} = Key, Agent, N, L = #leases{workers = Workers}) ->
    Have = length([x || #w{key = K} <- maps:values(Workers), K =:= Key]),
    Room = max_workers(Framework, L) - length(of_framework(Framework, L)),
    lists:foldl(fun(_, {Effects, Acc = #leases{workers = All}}) ->
                    {Id, Acc1} = new_id(Framework, Acc),
                    {[{start, Id, Key, Agent} | Effects], Acc1#leases{workers = All#{Id => #w{key = Key}}}}
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
-spec cancel(reference(), leases()) -> leases().
cancel(Ref, L = #leases{queues = Queues}) ->
    Queues1 = maps:filtermap(
        fun(_, Q) ->
            Q1 = queue:filter(fun(#{ref := R}) -> R =/= Ref end, Q),
            case queue:is_empty(Q1) of true -> false; false -> {true, Q1} end
        end, Queues),
    L#leases{queues = Queues1, waiting = count(Queues1)}.

%% @doc A worker is ready or its task has ended.
-spec idle(binary(), leases()) -> {[effect()], leases()}.
idle(Id, L = #leases{workers = Workers, failures = Failures}) ->
    case Workers of
        #{Id := #w{key = Key, state = State}} when State =/= stopping ->
            serve(Id, Key, L#leases{failures = maps:remove(Key, Failures)});
        #{} ->
            {[], L}
    end.

%% @doc A worker is no more. `start_failed' with a text when it never became ready.
-spec ended(binary(), normal | {start_failed, binary()}, leases()) -> {[effect()], leases()}.
ended(Id, How, L = #leases{workers = Workers}) ->
    case maps:take(Id, Workers) of
        error ->
            {[], L};
        {#w{key = Key}, Workers1} ->
            Idle = put_idle(Key, lists:delete(Id, maps:get(Key, L#leases.idle, [])), L#leases.idle),
            after_end(Key, How, L#leases{workers = Workers1, idle = Idle})
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
     L#leases{queues = maps:remove(Key, Queues), waiting = N - length(Requests)}}.

%% @doc Ids with key and state.
-spec workers(leases()) -> [{binary(), key(), starting | idle | leased | stopping}].
workers(#leases{workers = Workers}) ->
    [{Id, Key, State} || {Id, #w{key = Key, state = State}} <- maps:to_list(Workers)].

%% @doc Requests that wait.
-spec waiting(leases()) -> non_neg_integer().
waiting(#leases{waiting = N}) ->
    N.

%% Whether one more worker of the framework may be leased at the level of a request.
-spec may_have_one(binary(), request(), leases()) -> boolean().
may_have_one(Framework, Request, L) ->
    Leased = length([x || #w{state = leased} <- of_framework(Framework, L)]),
    Leased < max_workers(Framework, L) * (depth(Request) + 1).

-spec serve(binary(), key(), leases()) -> {[effect()], leases()}.
serve(Id, Key, L0) ->
    %% Not leased any more.
    L = #leases{queues = Queues, waiting = N} = set(Id, idle, L0),
    Next = case Queues of
               #{Key := Queue} ->
                   {{value, Request}, Rest} = queue:out(Queue),
                   may_have_one(element(1, Key), Request, L) andalso {Request, Rest};
               #{} ->
                   false
           end,
    case Next of
        {Served, Others} ->
            Queues1 = case queue:is_empty(Others) of true -> maps:remove(Key, Queues); false -> Queues#{Key => Others} end,
            {[{grant, Id, Served}], set(Id, leased, L#leases{queues = Queues1, waiting = N - 1})};
        false ->
            case length(of_framework(element(1, Key), L)) > max_workers(element(1, Key), L) of
                true ->
                    %% It was one of those for subtasks.
                    {[{stop, Id}], set(Id, stopping, L)};
                false ->
                    Idle = maps:update_with(Key, fun(Ids) -> [Id | lists:delete(Id, Ids)] end, [Id], L#leases.idle),
                    grow_all(element(1, Key), set(Id, idle, L#leases{idle = Idle}))
            end
    end.

-spec of_framework(binary(), leases()) -> [#w{}].
of_framework(Framework, #leases{workers = Workers}) ->
    [W || {_, W = #w{key = K}} <- maps:to_list(Workers), element(1, K) =:= Framework].

-spec max_workers(binary(), leases()) -> integer().
max_workers(Framework, #leases{extra = Extra, limits = #{max_per_framework := Local}}) ->
    Local + maps:get(framework_adapter_env:environment(Framework), Extra, 0).

%% Every key of the framework that waits may now have room.
-spec grow_all(binary(), leases()) -> {[effect()], leases()}.
grow_all(_Framework, L = #leases{queues = Queues}) when map_size(Queues) =:= 0 ->
    {[], L};
grow_all(Framework, L = #leases{queues = Queues}) ->
    Keys = [K || K <- maps:keys(Queues), element(1, K) =:= Framework],
    lists:foldl(fun(K, {Effects, Acc}) -> {E, Acc1} = grow(K, Acc), {Effects ++ E, Acc1} end, {[], L}, Keys).

%% Starts a worker for a key that waits, or makes room for one.
-spec grow(key(), leases()) -> {[effect()], leases()}.
grow(Key, L = #leases{workers = Workers, queues = Queues}) ->
    Framework = element(1, Key),
    Mine = of_framework(Framework, L),
    Starting = length([x || #w{key = K, state = starting} <- Mine, K =:= Key]),
    Queue = maps:get(Key, Queues, queue:new()),
    case queue:len(Queue) > Starting andalso queue:peek(Queue) of
        false ->
            {[], L};
        {value, #{agent := Agent} = First} ->
            case length(Mine) < max_workers(Framework, L) * (depth(First) + 1) of
                true ->
                    {Id, L1} = new_id(Framework, L),
                    {[{start, Id, Key, Agent}], L1#leases{workers = Workers#{Id => #w{key = Key}}}};
                false ->
                    evict(Framework, Key, Mine, L)
            end
    end.

%% "langchain-3": an operator can say it. Numbers are not used again while the node runs.
-spec new_id(binary(), leases()) -> {binary(), leases()}.
new_id(Framework, L = #leases{last_id = N}) ->
    Name = binary:replace(Framework, [<<":">>, <<"/">>], <<"-">>, [global]),
    {<<Name/binary, "-", (integer_to_binary(N + 1))/binary>>, L#leases{last_id = N + 1}}.

-spec evict(binary(), key(), [#w{}], leases()) -> {[effect()], leases()}.
evict(Framework, Key, Mine, L = #leases{idle = Idle}) ->
    Stopping = lists:any(fun(#w{state = S}) -> S =:= stopping end, Mine),
    Others = [{K, Ids} || {K, Ids = [_ | _]} <- maps:to_list(Idle), element(1, K) =:= Framework, K =/= Key],
    case Others of
        [{K, Ids} | _] when not Stopping ->
            Oldest = lists:last(Ids),
            L1 = set(Oldest, stopping, L#leases{idle = put_idle(K, lists:delete(Oldest, Ids), Idle)}),
            {[{stop, Oldest}], L1};
        _ ->
            {[], L}
    end.

-spec set(binary(), starting | idle | leased | stopping, leases()) -> leases().
set(Id, State, L = #leases{workers = Workers}) ->
    case Workers of
        #{Id := #w{state = stopping}} -> L;
        #{Id := W} -> L#leases{workers = Workers#{Id => W#w{state = State}}};
        #{} -> L
    end.

-spec put_idle(key(), [binary()], #{key() => [binary()]}) -> #{key() => [binary()]}.
put_idle(Key, [], Idle) -> maps:remove(Key, Idle);
put_idle(Key, Ids, Idle) -> Idle#{Key => Ids}.

-spec count(#{key() => queue:queue(request())}) -> non_neg_integer().
count(Queues) ->
    maps:fold(fun(_, Q, N) -> N + queue:len(Q) end, 0, Queues).
