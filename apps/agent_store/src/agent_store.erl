%% @doc What is durable: writes and reads of the store (`docs/native_messages.md', section 3).
%%
%% A write on an ephemeral task is answered without a message. A write whose answer was lost is `{unknown, _}', never "failed": the caller
%% reads back by the fence or sends again with the same request id.
-module(agent_store).

-export([write/1]).
-export([write/2]).
-export([start/1]).
-export([cast/1]).
-export([say/4]).
-export([read/1]).
-export([memory/2]).
-export([epoch/0]).

%% A commit takes a few ms; this is for a disk in trouble.
-define(TIMEOUT_MS, 30000).
%% A full queue is tried again after this, for writes that must not be lost.
-define(BUSY_RETRY_MS, 5).

-type result() :: {ok, term()} | {error, agent_error:t()} | {unknown, agent_error:t()}.

%% @doc Writes and waits for the commit. A full queue is waited for unless the write is a submit.
-spec write(tuple() | recover) -> result().
write(Op) ->
    write(Op, ?TIMEOUT_MS).

%% @doc The same with a limit in ms.
-spec write(tuple() | recover, non_neg_integer()) -> result().
write(Op, Timeout) ->
    case enqueue(Op) of
        {ok, Ref} -> await(Ref, Timeout);
        {done, Result} -> {ok, Result};
        busy -> busy(Op, Timeout);
        {error, Error} -> {error, Error}
    end.

-spec busy(tuple() | recover, integer()) -> result().
busy(Op, _) when element(1, Op) =:= submit ->
    {error, (agent_error:new(overloaded, <<"the store's queue is full">>))#{retry_after_ms => 100}};
busy(_, Timeout) when Timeout =< 0 ->
    {error, agent_error:new(overloaded, <<"the store's queue stayed full">>)};
busy(Op, Timeout) ->
    receive after ?BUSY_RETRY_MS -> ok end,
    write(Op, max(0, Timeout - ?BUSY_RETRY_MS)).

-spec enqueue(tuple() | recover) -> {ok, reference()} | {done, term()} | busy | {error, agent_error:t()}.
enqueue(Op) ->
    Ref = make_ref(),
    with_store(fun(Store) -> enqueued(agent_native:store_write(Store, Ref, Op), Ref) end).

-spec enqueued(ok | Answer, reference()) -> {ok, reference()} | Answer.
enqueued(ok, Ref) -> {ok, Ref};
enqueued(Answer, _) -> Answer.

-spec await(reference(), non_neg_integer()) -> result().
await(Ref, Timeout) ->
    receive
        {agent_native, Ref, done, Result} -> {ok, Result};
        {agent_native, Ref, error, #{reason := commit_ambiguous} = Error} -> {unknown, Error};
        {agent_native, Ref, error, Error} -> {error, Error}
    after Timeout ->
        {unknown, agent_error:new(commit_ambiguous, <<"the store did not answer in time">>)}
    end.

%% @doc Writes without waiting for the commit, of which the caller hears: `{agent_native, Ref, done | error, _}'. An answer at once
%% comes as `{done, _}'.
-spec start(tuple()) -> {ok, reference()} | {done, term()} | {error, agent_error:t()}.
start(Op) ->
    case enqueue(Op) of
        busy -> {error, agent_error:new(overloaded, <<"the store's queue is full">>)};
        Answer -> Answer
    end.

%% @doc Writes without waiting: events. Its answer comes to the caller as `{agent_native, Ref, _, _}' and may be ignored.
-spec cast(tuple()) -> ok.
cast(Op) ->
    _ = with_store(fun(Store) -> agent_native:store_write(Store, make_ref(), Op) end),
    ok.

%% @doc Text of a running attempt ahead of its batch. Nothing is kept of it: who watches now sees it, and it is written with its batch.
-spec say(binary(), pos_integer(), non_neg_integer(), binary()) -> ok.
say(TaskId, Attempt, Offset, Text) ->
    _ = with_store(fun(Store) -> agent_native:store_say(Store, TaskId, Attempt, Offset, Text) end),
    ok.

%% @doc Reads.
-spec read(tuple()) -> {ok, term()} | {error, agent_error:t()}.
read(Op) ->
    Ref = make_ref(),
    case with_store(fun(Store) -> agent_native:store_read(Store, Ref, Op) end) of
        ok ->
            case await(Ref, ?TIMEOUT_MS) of
                {unknown, Error} -> {error, Error};
                Result -> Result
            end;
        {error, Error} ->
            {error, Error}
    end.

%% @doc A worker's call of memory (`worker.v1.MemoryRequest'), of which the caller hears: `{agent_native, Ref, done | error, _}'.
%% `Place': `#{task => payload(), task_id, tenant, agent_id, fence}', without a fence for an ephemeral task.
-spec memory(map(), binary()) -> {ok, reference()} | {done, binary()} | {error, agent_error:t()}.
memory(Place, Request) ->
    Ref = make_ref(),
    case with_store(fun(Store) -> enqueued(agent_native:store_memory(Store, Ref, Place, Request), Ref) end) of
        busy -> {error, agent_error:new(overloaded, <<"the store's queue is full">>)};
        Answer -> Answer
    end.

%% @doc Epoch of this boot of the store; 0 before the first.
-spec epoch() -> non_neg_integer().
epoch() ->
    persistent_term:get({?MODULE, epoch}, 0).

-spec with_store(fun((agent_native:store()) -> Answer | {error, native_down})) -> Answer | {error, agent_error:t()}.
with_store(Fun) ->
    case native_subsystem:handle(store) of
        {ok, Store} ->
            case Fun(Store) of
                {error, native_down} -> {error, down()};
                Answer -> Answer
            end;
        {error, native_down} ->
            {error, down()}
    end.

-spec down() -> agent_error:t().
down() ->
    (agent_error:new(store_unavailable, <<"the store is not up">>))#{retry_after_ms => 500}.
