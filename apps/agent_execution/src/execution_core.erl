%% @doc What becomes of a running attempt: pure, decides with effects as data. {@link execution_coordinator} carries them out.
%%
%% ```
%% ready -> native ----------------------------------> ended      result, failure, crash of the step
%%       -> leasing -> working ----------------------> ended      result, failure, loss of the worker
%%                     working -> native ------------> ended      an answer without the form that was asked for is said again natively
%% native, working --stop--> grace --grace_over--> killing -> ended
%% '''
%% A stop is a cancel or a clock. In the grace a result still counts; then the attempt is fenced *before* its processes
%% are killed, so that nothing late can win, and the end is recorded with the proof. An attempt ends in exactly one effect
%% `{finish, _}', `{requeue, _}' or `{park, _}'; whatever comes after it has no effect.
-module(execution_core).

-export([new/2]).
-export([step/2]).
-export([phase/1]).
-export([no_proof_needed/0]).
-export([cancelled/0]).
-export([replay_not_allowed/1]).
-export([text/1]).

-export_type([core/0, event/0, effect/0, stop/0, phase/0]).

%% A native step ends at once when it is told; behind this it is killed, in ms. A plan ends its workers itself.
-define(NATIVE_GRACE_MS, 2000).
%% Pause before the next attempt when the native runtime ended under this one, in ms.
-define(NATIVE_DOWN_PAUSE_MS, 250).
%% Largest exponent of the backoff: beyond it the limit is reached anyway.
-define(MAX_DOUBLINGS, 30).

-type phase() :: ready | native | leasing | working | grace | killing | ended.
-type stop() :: cancelled | total | attempt | heartbeat.
-type event() ::
    start
    | {leased, map()}
    | {refused, agent_error:t()}
    | {result, succeeded | failed | cancelled | input_requested, map()}
    | misfit
    | {lost, map()}
    | step_down
    | worker_down
    | {stop, stop(), GraceMs :: non_neg_integer()}
    | grace_over
    | {gone, map()}.
-type effect() ::
    start_native | repair | {lease, Framework :: binary()} | cancel_lease | {attempt_info, map()} | execute
    | {event, tuple()}
    | {abort_native, GraceMs :: pos_integer()} | {abort_plan, GraceMs :: non_neg_integer()} | kill_native
    | {cancel_worker, GraceMs :: non_neg_integer()} | fence | kill_worker
    | {finish, map()}
    | {park, #{inputs := binary()} | #{budget := agent_error:t()}}
    | {requeue, #{outcome := lost | failed | timed_out, cause := binary(), counts := boolean(),
                  delay := none | {fixed, pos_integer()} | {jitter, pos_integer()}}}.

-record(core, {
    phase = ready :: phase(),
    executor :: binary(),
    plan :: boolean(),
    %% A native step says the framework's answer again.
    repairs = false :: boolean(),
    %% Attempts used up before this one: those that count.
    used :: non_neg_integer(),
    max_attempts :: pos_integer(),
    initial_backoff_ms :: non_neg_integer(),
    max_backoff_ms :: non_neg_integer(),
    multiplier :: float(),
    non_retryable :: [binary()],
    allow_replay :: boolean(),
    on_budget_end :: fail | wait | cheaper_model,
    stop = none :: none | stop()
}).
-opaque core() :: #core{}.

%% @doc An attempt of a task that has used `used' attempts before.
-spec new(Header :: map(), #{executor := binary(), used := non_neg_integer()}) -> core().
new(Header, #{executor := Executor, used := Used}) ->
    Retry = maps:get(retry, Header, #{}),
    #core{executor = Executor, plan = maps:get(has_plan, Header, false), used = Used,
          max_attempts = maps:get(max_attempts, Retry, 5),
          initial_backoff_ms = maps:get(initial_backoff_ms, Retry, 1000),
          max_backoff_ms = maps:get(max_backoff_ms, Retry, 60000),
          multiplier = float(maps:get(multiplier, Retry, 2.0)),
          non_retryable = maps:get(non_retryable, Retry, []),
          allow_replay = maps:get(allow_replay, Header, false),
          on_budget_end = maps:get(on_budget_end, maps:get(money, Header, #{}), fail)}.

%% @doc Where the attempt is.
-spec phase(core()) -> phase().
phase(#core{phase = Phase}) ->
    Phase.

%% @doc One event in, effects out, in order.
-spec step(event(), core()) -> {[effect()], core()}.
step(_, C = #core{phase = ended}) ->
    {[], C};
step(start, C = #core{phase = ready, executor = <<"native">>}) ->
    {[start_native], C#core{phase = native}};
step(start, C = #core{phase = ready, executor = Framework}) ->
    {[{lease, Framework}], C#core{phase = leasing}};
step({leased, Info}, C = #core{phase = leasing, executor = Framework}) ->
    Assigned = {worker_assigned, #{worker => maps:get(worker, Info, <<>>), host_pid => maps:get(host_pid, Info, 0),
                                   framework => Framework}},
    {[{attempt_info, Info}, {event, Assigned}, execute], C#core{phase = working}};
step({refused, Error}, C = #core{phase = leasing}) ->
    failed(Error, C);
%% Results. In the grace one that succeeds counts, any other is the end that was asked for.
step({result, succeeded, Props}, C) ->
    finish(#{state => succeeded, result => maps:get(result, Props, undefined), attempt_outcome => succeeded,
             journal => maps:get(journal, Props, [])}, C);
step(misfit, C = #core{phase = working}) ->
    {[repair], C#core{phase = native, repairs = true}};
step(misfit, C) ->
    step({result, failed, #{}}, C);
step({result, _, Props}, C = #core{phase = Phase}) when Phase =:= grace; Phase =:= killing ->
    stopped(maps:get(proof, Props, unseen(C)), C);
%% A plan has retried its steps: it is not retried as a whole.
step({result, failed, #{final := true, error := Error}}, C) ->
    give_up(Error, failed, C);
%% What is asked may take days to be answered: the attempt ends, and the next one begins with the answers.
step({result, input_requested, #{unjournaled_tools := [_ | _] = Tools}}, C = #core{allow_replay = false}) ->
    give_up(replay_not_allowed(Tools), failed, C);
step({result, input_requested, #{inputs := Inputs}}, C) ->
    {[{park, #{inputs => Inputs}}], C#core{phase = ended}};
step({result, input_requested, _}, C) ->
    give_up(agent_error:new(worker_protocol_error, <<"the worker asked for input without a question">>), failed, C);
%% The money is gone, and the task waits until there is more or somebody says that it may go on.
step({result, _, #{error := #{reason := budget_exhausted}, unjournaled_tools := [_ | _] = Tools}},
     C = #core{on_budget_end = wait, allow_replay = false}) ->
    give_up(replay_not_allowed(Tools), failed, C);
step({result, _, #{error := #{reason := budget_exhausted} = Error}}, C = #core{on_budget_end = wait}) ->
    {[{park, #{budget => Error}}], C#core{phase = ended}};
step({result, _, Props}, C) ->
    failed(maps:get(error, Props, agent_error:new(internal, <<"the executor gave no reason">>)), C);
%% Losses.
step({lost, Lost}, C = #core{phase = Phase}) when Phase =:= grace; Phase =:= killing ->
    Proof = maps:get(proof, Lost, unconfirmed),
    stopped(#{witness => Proof, host_pid => maps:get(host_pid, Lost, 0), signals => [],
              confirmed_dead => Proof =/= unconfirmed, survivors => [], fenced_at_ms => 0, duration_us => 0}, C);
%% Another task of the process was ended, or its owner was: this one has nothing to do with it.
step({lost, #{innocent := true} = Lost}, C = #core{phase = Phase}) when Phase =:= working; Phase =:= leasing ->
    uncounted(worker_crashed, maps:get(detail, Lost, <<>>), C);
%% Other tasks ran in the same process: whose fault it was nobody knows, so it does not count, and the next attempt runs alone.
step({lost, #{beside := Others} = Lost}, C = #core{phase = Phase}) when Others > 0, Phase =:= working orelse Phase =:= leasing ->
    Detail = iolist_to_binary(io_lib:format("~b more ran in the same worker: ~s", [Others, maps:get(detail, Lost, <<>>)])),
    uncounted(worker_shared, Detail, C);
step({lost, Lost}, C = #core{phase = Phase}) when Phase =:= working; Phase =:= leasing ->
    lost(maps:get(cause, Lost, worker_crashed), maps:get(detail, Lost, <<>>), maps:get(metadata, Lost, #{}), C);
step(step_down, C = #core{phase = native}) ->
    lost(native_panic, <<"the process of the native step ended unexpectedly">>, #{}, C);
step(step_down, C = #core{phase = Phase}) when Phase =:= grace; Phase =:= killing ->
    stopped(unseen(C), C);
step(worker_down, C = #core{phase = working}) ->
    lost(worker_crashed, <<"the process that owned the worker ended">>, #{}, C);
step(worker_down, C = #core{phase = Phase}) when Phase =:= grace; Phase =:= killing ->
    stopped(unconfirmed(), C);
%% Stops.
step({stop, Why, Grace}, C = #core{phase = native, plan = true}) ->
    {[{abort_plan, Grace}], C#core{phase = grace, stop = Why}};
step({stop, Why, _}, C = #core{phase = native}) ->
    {[{abort_native, ?NATIVE_GRACE_MS}], C#core{phase = grace, stop = Why}};
step({stop, Why, _}, C = #core{phase = leasing}) ->
    {Effects, C1} = stopped(no_proof_needed(), C#core{stop = Why}),
    {[cancel_lease | Effects], C1};
step({stop, Why, Grace}, C = #core{phase = working}) ->
    {[{cancel_worker, Grace}], C#core{phase = grace, stop = Why}};
step({stop, Why, _}, C = #core{phase = ready}) ->
    stopped(no_proof_needed(), C#core{stop = Why});
step({stop, Why, 0}, C = #core{phase = grace, plan = true}) ->
    {[{abort_plan, 0}], C#core{stop = stronger(Why, C#core.stop)}};
step({stop, Why, 0}, C = #core{phase = grace, executor = E, repairs = false}) when E =/= <<"native">> ->
    %% The second one is in more of a hurry.
    {[{cancel_worker, 0}], C#core{stop = stronger(Why, C#core.stop)}};
step({stop, Why, _}, C = #core{phase = Phase}) when Phase =:= grace; Phase =:= killing ->
    {[], C#core{stop = stronger(Why, C#core.stop)}};
step(grace_over, C = #core{phase = grace, executor = E, repairs = Repairs}) when Repairs; E =:= <<"native">> ->
    {[fence, kill_native], C#core{phase = killing}};
step(grace_over, C = #core{phase = grace}) ->
    {[fence, kill_worker], C#core{phase = killing}};
step({gone, Proof}, C = #core{phase = killing}) ->
    stopped(Proof, C);
step(_, C) ->
    {[], C}.

%% A cancel is what the user sees, whatever clock rang before it.
-spec stronger(stop(), none | stop()) -> stop().
stronger(cancelled, _) -> cancelled;
stronger(_, cancelled) -> cancelled;
stronger(total, _) -> total;
stronger(New, none) -> New;
stronger(_, Old) -> Old.

%% ---- ends

-spec stopped(map(), core()) -> {[effect()], core()}.
stopped(Proof, C = #core{stop = cancelled}) ->
    finish(#{state => cancelled, attempt_outcome => cancelled, cause => <<"TASK_CANCELLED">>, proof => Proof,
             error => cancelled()}, C);
stopped(Proof, C = #core{stop = total}) ->
    finish(#{state => timed_out, attempt_outcome => timed_out, cause => <<"TASK_TIMEOUT">>, proof => Proof,
             error => agent_error:new(task_timeout, <<"max_duration is over">>, #{<<"limit">> => <<"max_duration">>})}, C);
stopped(_, C = #core{stop = heartbeat}) ->
    overdue(agent_error:new(heartbeat_timeout, <<"the task showed no progress for its heartbeat_timeout">>), <<"HEARTBEAT_TIMEOUT">>, C);
stopped(_, C) ->
    overdue(agent_error:new(task_timeout, <<"max_attempt_duration is over">>, #{<<"limit">> => <<"max_attempt_duration">>}),
            <<"TASK_TIMEOUT">>, C).

%% A clock of the attempt has rung: the next one, if there is one.
-spec overdue(agent_error:t(), binary(), core()) -> {[effect()], core()}.
overdue(Error = #{reason := Reason}, Cause, C) ->
    case exhausted(C) orelse refused_retry(Reason, C) of
        true -> finish(#{state => timed_out, attempt_outcome => timed_out, cause => Cause, error => Error}, C);
        false -> requeue(timed_out, Reason, true, backoff(C), C)
    end.

-spec failed(agent_error:t(), core()) -> {[effect()], core()}.
failed(#{reason := Reason}, C = #core{executor = E, repairs = Repairs})
  when Reason =:= native_down orelse Reason =:= unknown orelse Reason =:= task_cancelled, Repairs orelse E =:= <<"native">> ->
    %% The runtime ended under the step (a call that nobody cancelled was): no fault of the task's, so it does not count.
    requeue(lost, native_down, false, {fixed, ?NATIVE_DOWN_PAUSE_MS}, C);
failed(#{reason := Reason} = Error, C) ->
    case engine_errors:retryable(Reason) andalso not refused_retry(Reason, C) andalso not exhausted(C) of
        true -> requeue(failed, Reason, true, backoff(C), C);
        false -> give_up(Error, failed, C)
    end.

-spec lost(atom(), binary(), #{binary() => binary()}, core()) -> {[effect()], core()}.
lost(Cause, Detail, Metadata, C = #core{used = Used, max_attempts = Max}) ->
    Error = agent_error:new(Cause, Detail, Metadata),
    Event = {event, {worker_lost, #{cause => text(Cause), detail => Detail}}},
    {Effects, C1} =
        case lists:member(Cause, [worker_oom, worker_process_limit, worker_start_failed]) orelse refused_retry(Cause, C) of
            true -> give_up(Error, lost, C);
            false when Used + 1 < Max -> requeue(lost, Cause, true, after_loss(C), C);
            false when Max > 1 ->
                give_up(agent_error:new(poison_task, <<"its attempts ended the worker, the last one so: ", Detail/binary>>,
                                        #{<<"attempts">> => integer_to_binary(Used + 1), <<"last_cause">> => text(Cause)}),
                        lost, C);
            false -> give_up(Error, lost, C)
        end,
    {[Event | Effects], C1}.

%% The next attempt comes at once.
-spec uncounted(atom(), binary(), core()) -> {[effect()], core()}.
uncounted(Cause, Detail, C) ->
    Event = {event, {worker_lost, #{cause => text(Cause), detail => Detail}}},
    {Effects, C1} = case refused_retry(Cause, C) of
                        true -> give_up(agent_error:new(Cause, Detail), lost, C);
                        false -> requeue(lost, Cause, false, none, C)
                    end,
    {[Event | Effects], C1}.

-spec give_up(agent_error:t(), failed | lost, core()) -> {[effect()], core()}.
give_up(#{reason := Reason} = Error, Outcome, C) ->
    finish(#{state => failed, error => Error, attempt_outcome => Outcome, cause => text(Reason)}, C).

-spec finish(map(), core()) -> {[effect()], core()}.
finish(End, C = #core{executor = Executor, plan = Plan}) ->
    %% The result of a plan says itself what ran its steps.
    {[{finish, End#{executor => case Plan of true -> <<>>; false -> Executor end}}], C#core{phase = ended}}.

-spec requeue(lost | failed | timed_out, atom(), boolean(), none | {fixed | jitter, pos_integer()}, core()) ->
    {[effect()], core()}.
requeue(Outcome, Reason, Counts, Delay, C) ->
    {[{requeue, #{outcome => Outcome, cause => text(Reason), counts => Counts, delay => Delay}}], C#core{phase = ended}}.

-spec exhausted(core()) -> boolean().
exhausted(#core{used = Used, max_attempts = Max}) ->
    Used + 1 >= Max.

-spec refused_retry(atom(), core()) -> boolean().
refused_retry(Reason, #core{non_retryable = Names}) ->
    lists:member(text(Reason), Names).

%% The first retry after a loss has no delay: what killed the worker is most often gone with it.
-spec after_loss(core()) -> none | {jitter, pos_integer()}.
after_loss(#core{used = 0}) -> none;
after_loss(C = #core{used = Used}) -> backoff(C#core{used = Used - 1}).

%% Exponential, with full jitter.
-spec backoff(core()) -> none | {jitter, pos_integer()}.
backoff(#core{used = Used, initial_backoff_ms = Initial, max_backoff_ms = Max, multiplier = Multiplier}) ->
    case min(Max, trunc(Initial * math:pow(Multiplier, min(Used, ?MAX_DOUBLINGS)))) of
        0 -> none;
        Upper -> {jitter, Upper}
    end.

%% @doc The proof of an end that left no process of the task's own behind: there is none to kill.
-spec no_proof_needed() -> map().
no_proof_needed() ->
    #{witness => none_needed, host_pid => 0, signals => [], confirmed_dead => true, survivors => [], fenced_at_ms => 0,
      duration_us => 0}.

%% What is known where nobody said anything: a native step leaves nothing behind, a plan may have had workers.
-spec unseen(core()) -> map().
unseen(#core{plan = true}) -> unconfirmed();
unseen(#core{}) -> no_proof_needed().

-spec unconfirmed() -> map().
unconfirmed() ->
    (no_proof_needed())#{witness => unconfirmed, confirmed_dead => false}.

%% @doc The error of a task that somebody has ended.
-spec cancelled() -> agent_error:t().
cancelled() ->
    agent_error:new(task_cancelled, <<"the task was cancelled">>).

%% @doc Why a task does not run again after it has used tools that cannot be journaled.
-spec replay_not_allowed([binary()]) -> agent_error:t().
replay_not_allowed(Tools) ->
    Names = iolist_to_binary(lists:join(<<", ">>, Tools)),
    agent_error:new(replay_not_allowed, <<"an earlier attempt may have used tools that cannot be journaled: ", Names/binary,
                                          "; execution_hints.allow_replay lets it run again">>, #{<<"tools">> => Names}).

%% @doc A reason as clients see it.
-spec text(atom()) -> binary().
text(Reason) ->
    string:uppercase(atom_to_binary(Reason)).
