%% @doc One task on a worker: who owns it, in which slot it runs, what its agent asks of the engine, and how far its end is.
%%
%% Pure but for the owner's monitor and the messages to it. {@link framework_adapter_worker} keeps one for each task that it runs.
-module(framework_adapter_lease).

-export([new/3]).
-export([started/4]).
-export([ref/1]).
-export([slot/1]).
-export([fence/1]).
-export([task_id/1]).
-export([monitor_of/1]).
-export([calls/1]).
-export([set_calls/2]).
-export([is_running/1]).
-export([is_killed/1]).
-export([block_grace_ms/1]).
-export([is_now/1]).
-export([call/4]).
-export([note/2]).
-export([now/1]).
-export([close/1]).
-export([killed/1]).
-export([tell/2]).
-export([ended/1]).

-export_type([lease/0]).

-record(lease, {
    ref :: reference(),
    owner :: pid(),
    monitor :: reference(),
    slot :: non_neg_integer(),
    %% Its task runs: EXECUTE was sent, and RESULT has not come.
    running = false :: boolean(),
    calls = framework_adapter_calls:new() :: framework_adapter_calls:calls(),
    task_id = <<>> :: binary(),
    fence = 0 :: non_neg_integer(),
    %% For the journal; none for an ephemeral task.
    attempt = none :: none | pos_integer(),
    %% Which step of a plan it is, and whether its record alone answers it; empty for a whole task.
    scope = #{} :: map(),
    %% What the task may spend, and what happens then.
    money = #{} :: map(),
    %% The task itself, whose context names its memory.
    task :: agent_native:payload() | undefined,
    %% How long it may be blocked.
    block_grace_ms = 0 :: non_neg_integer(),
    gate = open :: open | closed,
    %% The caller said "now": nothing is between TERM and KILL.
    now = false :: boolean(),
    %% Its owner wants the proof of the death of its processes.
    killed = false :: boolean()
}).
-opaque lease() :: #lease{}.

%% @doc The owner of a task gets a slot, and is watched.
-spec new(reference(), pid(), Slot :: non_neg_integer()) -> lease().
new(Ref, Owner, Slot) ->
    #lease{ref = Ref, owner = Owner, monitor = monitor(process, Owner), slot = Slot}.

%% @doc Its task runs from now on; see {@link framework_adapter_worker:execute/3}.
-spec started(Task :: map(), Payload :: agent_native:payload(), BlockGraceMs :: non_neg_integer(), lease()) -> lease().
started(#{task_id := TaskId, attempt := Attempt, fence := Fence} = Task, Payload, BlockGraceMs, L) ->
    Header = maps:get(header, Task, #{}),
    Journaled = case Header of #{durability := ephemeral} -> none; #{} -> Attempt end,
    L#lease{running = true, task_id = TaskId, task = Payload, fence = Fence, attempt = Journaled,
            scope = maps:merge(maps:with([scope, life], Task), maps:with([replay], Header)),
            money = maps:get(money, Header, #{}), block_grace_ms = block_grace(Header, BlockGraceMs)}.

%% The task's own, or the node's where it names none.
-spec block_grace(map(), non_neg_integer()) -> non_neg_integer().
block_grace(#{block_grace_ms := Ms}, _) when Ms > 0 -> Ms;
block_grace(_, Ms) -> Ms.

%% @doc Names it.
-spec ref(lease()) -> reference().
ref(#lease{ref = Ref}) -> Ref.

%% @doc Its slot in the worker's process.
-spec slot(lease()) -> non_neg_integer().
slot(#lease{slot = Slot}) -> Slot.

%% @doc Fence of its attempt; 0 before it has one.
-spec fence(lease()) -> non_neg_integer().
fence(#lease{fence = Fence}) -> Fence.

%% @doc Its task; empty before it has one.
-spec task_id(lease()) -> binary().
task_id(#lease{task_id = Id}) -> Id.

%% @doc The owner's monitor.
-spec monitor_of(lease()) -> reference().
monitor_of(#lease{monitor = Monitor}) -> Monitor.

%% @doc What its agent has asked.
-spec calls(lease()) -> framework_adapter_calls:calls().
calls(#lease{calls = Calls}) -> Calls.

%% @doc The same, changed.
-spec set_calls(framework_adapter_calls:calls(), lease()) -> lease().
set_calls(Calls, L) -> L#lease{calls = Calls}.

%% @doc Whether its task runs.
-spec is_running(lease()) -> boolean().
is_running(#lease{running = Running}) -> Running.

%% @doc Whether its owner has asked for the end of its processes.
-spec is_killed(lease()) -> boolean().
is_killed(#lease{killed = Killed}) -> Killed.

%% @doc How long its task may block its worker, in ms.
-spec block_grace_ms(lease()) -> non_neg_integer().
block_grace_ms(#lease{block_grace_ms = Ms}) -> Ms.

%% @doc Whether its processes are killed without a TERM before.
-spec is_now(lease()) -> boolean().
is_now(#lease{now = Now}) -> Now.

%% @doc A CALL frame of its task came; `Worker' is the process that the answer to a delegation goes to.
-spec call(framework_adapter_frame:frame(), Spec :: map(), Worker :: pid(), lease()) -> lease().
call(Frame, #{tenant := Tenant, agent := Agent}, Worker, L = #lease{gate = Gate, fence = F, calls = Calls}) ->
    Open = (maps:merge(L#lease.scope, L#lease.money))#{task_id => L#lease.task_id, tenant => Tenant,
                                                        agent_id => maps:get(id, Agent, <<>>), task => L#lease.task},
    Ctx = case L#lease.attempt of none -> Open; N -> Open#{fence => F, attempt => N} end,
    {Notes, Calls1} = framework_adapter_calls:open(Frame, Gate, Ctx, Calls),
    ok = note({Notes, Worker}, L),
    L#lease{calls = Calls1}.

%% @doc The owner hears what its task's calls have to say.
-spec note({[framework_adapter_calls:note()], Worker :: pid()}, lease()) -> ok.
note({Notes, Worker}, L) ->
    lists:foreach(fun({delegate, Call, Request}) -> tell({delegate, Worker, Call, Request}, L);
                     (Note) -> tell(Note, L)
                  end, Notes).

%% @doc Nothing is left between TERM and KILL: the caller said "now".
-spec now(lease()) -> lease().
now(L) -> L#lease{now = true}.

%% @doc No call goes out any more, and what is open is told so.
-spec close(lease()) -> lease().
close(L = #lease{calls = Calls}) ->
    Error = agent_error:new(task_cancelled, <<"the task is being cancelled">>),
    L#lease{gate = closed, calls = framework_adapter_calls:abort_all(Error, Calls)}.

%% @doc Its owner waits for the proof.
-spec killed(lease()) -> lease().
killed(L) -> L#lease{killed = true}.

%% @doc A message to the owner.
-spec tell(term(), lease()) -> ok.
tell(What, #lease{ref = Ref, owner = Owner}) ->
    Owner ! {adapter, Ref, What},
    ok.

%% @doc It is over: open calls end, and the owner is watched no more.
-spec ended(lease()) -> ok.
ended(#lease{monitor = Monitor, calls = Calls}) ->
    framework_adapter_calls:forget(Calls),
    true = demonitor(Monitor, [flush]),
    ok.
