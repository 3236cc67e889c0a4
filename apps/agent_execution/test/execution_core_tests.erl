%% @doc Decisions of the coordinator, without a process.
-module(execution_core_tests).

%% Both define LET; neither is used here.
-include_lib("proper/include/proper.hrl").
-undef(LET).
-include_lib("eunit/include/eunit.hrl").

-define(ERROR(R), #{reason => R, message => <<"m">>}).

core(Executor, Used, Max) ->
    execution_core:new(#{retry => #{max_attempts => Max, initial_backoff_ms => 1000, max_backoff_ms => 60000,
                                    multiplier => 2.0, non_retryable => [<<"PROVIDER_TIMEOUT">>]}},
                       #{executor => Executor, used => Used}).

run(Events, Core) ->
    lists:foldl(fun(E, {Acc, C}) -> {Effects, C1} = execution_core:step(E, C), {Acc ++ Effects, C1} end, {[], Core}, Events).

effects(Events, Core) ->
    {Effects, _} = run(Events, Core),
    Effects.

a_native_task_that_succeeds_is_finished_once_test() ->
    ?assertMatch([start_native, {finish, #{state := succeeded, result := <<"r">>, executor := <<"native">>}}],
                 effects([start, {result, succeeded, #{result => <<"r">>}}, {result, succeeded, #{result => <<"late">>}}, step_down],
                         core(<<"native">>, 0, 5))).

a_framework_task_leases_then_executes_test() ->
    ?assertMatch([{lease, <<"langchain">>}, {attempt_info, _}, {event, {worker_assigned, #{worker := <<"w">>}}}, execute,
                  {finish, #{state := succeeded}}],
                 effects([start, {leased, #{worker => <<"w">>, host_pid => 7}}, {result, succeeded, #{}}],
                         core(<<"langchain">>, 0, 5))).

an_answer_without_its_form_is_said_again_natively_test() ->
    Begun = [start, {leased, #{}}, misfit],
    ?assertMatch([_, _, _, execute, repair, {finish, #{state := succeeded, executor := <<"langchain">>, journal := [entry]}}],
                 effects(Begun ++ [{result, succeeded, #{journal => [entry]}}], core(<<"langchain">>, 0, 5))),
    %% What runs now is no worker.
    Stopped = effects(Begun ++ [{stop, cancelled, 0}, grace_over, step_down], core(<<"langchain">>, 0, 5)),
    ?assertMatch([repair, {abort_native, _}, fence, kill_native, {finish, #{state := cancelled}}], lists:nthtail(4, Stopped)),
    %% Who is being cancelled gets no repair.
    ?assertMatch({finish, #{state := cancelled}},
                 lists:last(effects([start, {leased, #{}}, {stop, cancelled, 1000}, misfit], core(<<"langchain">>, 0, 5)))).

the_first_loss_is_retried_at_once_and_the_second_with_backoff_test() ->
    Lost = {lost, #{cause => worker_crashed, detail => <<"signal 9">>}},
    Events = [start, {leased, #{}}, Lost],
    ?assertMatch({requeue, #{outcome := lost, counts := true, delay := none, cause := <<"WORKER_CRASHED">>}},
                 lists:last(effects(Events, core(<<"langchain">>, 0, 5)))),
    ?assertMatch({requeue, #{delay := {jitter, 1000}}}, lists:last(effects(Events, core(<<"langchain">>, 1, 5)))),
    ?assertMatch({requeue, #{delay := {jitter, 2000}}}, lists:last(effects(Events, core(<<"langchain">>, 2, 5)))).

a_task_whose_attempts_kill_their_workers_is_poison_test() ->
    Lost = {lost, #{cause => worker_crashed, detail => <<"signal 11">>}},
    ?assertMatch({finish, #{state := failed, error := #{reason := poison_task}, attempt_outcome := lost}},
                 lists:last(effects([start, {leased, #{}}, Lost], core(<<"langchain">>, 4, 5)))).

what_shared_a_worker_does_not_count_whatever_ended_it_test() ->
    Lost = fun(Beside) -> {lost, #{cause => worker_oom, detail => <<"too much memory">>, beside => Beside}} end,
    Five = core(<<"langchain">>, 4, 5),
    [Event, Requeue] = lists:nthtail(4, effects([start, {leased, #{}}, Lost(2)], Five)),
    ?assertMatch({event, {worker_lost, #{cause := <<"WORKER_SHARED">>,
                                         detail := <<"2 more ran in the same worker: too much memory">>}}}, Event),
    ?assertMatch({requeue, #{outcome := lost, counts := false, delay := none, cause := <<"WORKER_SHARED">>}}, Requeue),
    %% Another one's end is nobody's fault here.
    ?assertMatch({requeue, #{counts := false, cause := <<"WORKER_CRASHED">>}},
                 lists:last(effects([start, {leased, #{}}, {lost, #{detail => <<"d">>, innocent => true}}], Five))),
    %% Alone it is its own fault.
    ?assertMatch({finish, #{error := #{reason := worker_oom}}},
                 lists:last(effects([start, {leased, #{}}, Lost(0)], core(<<"langchain">>, 0, 5)))),
    %% Who is being ended is ended.
    ?assertMatch({finish, #{state := cancelled}},
                 lists:last(effects([start, {leased, #{}}, {stop, cancelled, 10}, Lost(1)], core(<<"langchain">>, 0, 5)))).

one_attempt_keeps_its_own_cause_test() ->
    Lost = {lost, #{cause => worker_hung, detail => <<"blocked">>}},
    ?assertMatch({finish, #{error := #{reason := worker_hung}}},
                 lists:last(effects([start, {leased, #{}}, Lost], core(<<"langchain">>, 0, 1)))).

memory_is_not_tried_again_test() ->
    Lost = {lost, #{cause => worker_oom, detail => <<"1 GiB">>}},
    ?assertMatch({finish, #{error := #{reason := worker_oom}}},
                 lists:last(effects([start, {leased, #{}}, Lost], core(<<"langchain">>, 0, 5)))).

failures_that_heal_are_retried_others_are_not_test_() ->
    Last = fun(Reason, Used) ->
               lists:last(effects([start, {result, failed, #{error => ?ERROR(Reason)}}], core(<<"native">>, Used, 3)))
           end,
    [?_assertMatch({requeue, #{outcome := failed, delay := {jitter, 1000}}}, Last(provider_unavailable, 0)),
     ?_assertMatch({finish, #{state := failed, error := #{reason := provider_unavailable}}}, Last(provider_unavailable, 2)),
     ?_assertMatch({finish, #{error := #{reason := iteration_limit}}}, Last(iteration_limit, 0)),
     %% Named in the task's own list.
     ?_assertMatch({finish, #{error := #{reason := provider_timeout}}}, Last(provider_timeout, 0)),
     %% The runtime's end is not the task's fault.
     ?_assertMatch({requeue, #{outcome := lost, counts := false}}, Last(native_down, 2))].

a_cancel_of_a_worker_fences_before_it_kills_test() ->
    Proof = #{witness => namespace, confirmed_dead => true},
    ?assertMatch([{lease, _}, {attempt_info, _}, {event, _}, execute, {cancel_worker, 5000}, fence, kill_worker,
                  {finish, #{state := cancelled, proof := Proof, error := #{reason := task_cancelled}}}],
                 effects([start, {leased, #{}}, {stop, cancelled, 5000}, grace_over, {gone, Proof}],
                         core(<<"langchain">>, 0, 5))).

a_result_in_the_grace_counts_test() ->
    ?assertMatch({finish, #{state := succeeded}},
                 lists:last(effects([start, {leased, #{}}, {stop, cancelled, 5000}, {result, succeeded, #{}}],
                                    core(<<"langchain">>, 0, 5)))).

a_cancelled_native_step_needs_no_proof_test() ->
    ?assertMatch([start_native, {abort_native, _},
                  {finish, #{state := cancelled, proof := #{witness := none_needed, confirmed_dead := true}}}],
                 effects([start, {stop, cancelled, 0}, {result, failed, #{error => ?ERROR(task_cancelled)}}],
                         core(<<"native">>, 0, 5))).

a_deaf_native_step_is_fenced_and_killed_test() ->
    ?assertMatch([start_native, {abort_native, _}, fence, kill_native, {finish, #{state := cancelled}}],
                 effects([start, {stop, cancelled, 0}, grace_over, step_down], core(<<"native">>, 0, 5))).

a_cancel_while_a_worker_is_awaited_takes_the_lease_back_test() ->
    ?assertMatch([{lease, _}, cancel_lease, {finish, #{state := cancelled}}],
                 effects([start, {stop, cancelled, 5000}], core(<<"langchain">>, 0, 5))).

max_duration_ends_the_task_and_max_attempt_duration_the_attempt_test() ->
    Gone = {gone, #{witness => descendants, confirmed_dead => true}},
    Last = fun(Clock, Used) ->
               lists:last(effects([start, {leased, #{}}, {stop, Clock, 0}, grace_over, Gone], core(<<"langchain">>, Used, 3)))
           end,
    ?assertMatch({finish, #{state := timed_out, error := #{reason := task_timeout}}}, Last(total, 0)),
    ?assertMatch({requeue, #{outcome := timed_out, counts := true}}, Last(attempt, 0)),
    ?assertMatch({finish, #{state := timed_out}}, Last(attempt, 2)).

an_attempt_ends_exactly_once_test() ->
    ?assert(proper:quickcheck(prop_one_end(), [{numtests, 500}, {to_file, user}])).

%% Whatever comes in whatever order: at most one end, and nothing after it.
prop_one_end() ->
    ?FORALL({Executor, Used, Events}, {oneof([<<"native">>, <<"langchain">>]), range(0, 4), list(event())},
            begin
                {Effects, Core} = run([start | Events], core(Executor, Used, 5)),
                Ends = [E || E <- Effects, is_tuple(E), lists:member(element(1, E), [finish, requeue, park])],
                length(Ends) =< 1
                    andalso (Ends =:= [] orelse lists:last(Effects) =:= hd(Ends))
                    andalso ((Ends =/= []) =:= (execution_core:phase(Core) =:= ended))
            end).

event() ->
    oneof([{leased, #{}}, {refused, ?ERROR(queue_full)}, {result, succeeded, #{result => <<>>}},
           {result, failed, #{error => ?ERROR(provider_unavailable)}}, {result, cancelled, #{}},
           {result, input_requested, #{}}, {result, input_requested, #{inputs => <<>>}},
           {result, input_requested, #{inputs => <<>>, unjournaled_tools => [<<"t">>]}},
           {lost, #{cause => worker_crashed, detail => <<>>}}, step_down, worker_down, misfit,
           {stop, oneof([cancelled, total, attempt, heartbeat]), oneof([0, 5000])}, grace_over,
           {gone, #{witness => namespace, confirmed_dead => true}}]).

%% ---- plans: driven like a native step, ended with proof

plan() ->
    execution_core:new(#{has_plan => true, retry => #{max_attempts => 5}}, #{executor => <<"native">>, used => 0}).

a_plan_that_failed_is_not_tried_again_as_a_whole_test() ->
    Failed = {result, failed, #{error => ?ERROR(worker_crashed), final => true}},
    ?assertMatch({finish, #{state := failed, error := #{reason := worker_crashed}}}, lists:last(effects([start, Failed], plan()))),
    %% A runtime that ended under it is no fault of its steps'.
    ?assertMatch({requeue, _}, lists:last(effects([start, step_down], plan()))).

a_plan_ends_its_own_workers_and_brings_their_proof_test() ->
    Proof = #{witness => namespace, confirmed_dead => true},
    ?assertMatch([start_native, {abort_plan, 700}, {abort_plan, 0}, {finish, #{state := cancelled, proof := Proof}}],
                 effects([start, {stop, cancelled, 700}, {stop, cancelled, 0}, {result, cancelled, #{proof => Proof}}], plan())),
    ?assertMatch([start_native, {abort_plan, 0}, fence, kill_native], effects([start, {stop, total, 0}, grace_over], plan())).

the_result_of_a_plan_names_its_own_executor_test() ->
    ?assertMatch({finish, #{executor := <<>>}}, lists:last(effects([start, {result, succeeded, #{result => <<"r">>}}], plan()))).
