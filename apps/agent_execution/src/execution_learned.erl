%% @doc Which ends of tasks say something about the executor that ran them.
%%
%% One that succeeded does, and one that failed in it. A provider that is down, money that is spent, a request that is wrong or a
%% cancel say nothing: the same would have happened anywhere.
-module(execution_learned).

-export([ended/4]).
-export([verdict/1]).

%% @doc A task with this header has ended on an executor.
-spec ended(Header :: map(), Executor :: binary(), End :: #{state := atom(), error => agent_error:t(), _ => _},
            #{ms := non_neg_integer(), cost := non_neg_integer() | unknown}) -> ok.
ended(Header, Executor, End, Used) ->
    case verdict(End) of
        none -> ok;
        Verdict -> execution_history:add(maps:get(task_type, Header, <<"general">>), Executor, Verdict =:= well, Used)
    end.

%% @doc What an end says.
-spec verdict(#{state := atom(), error => agent_error:t(), _ => _}) -> well | badly | none.
verdict(#{state := succeeded}) -> well;
verdict(#{state := timed_out}) -> badly;
verdict(#{state := failed, error := #{reason := Reason}}) -> of_failure(Reason);
verdict(_) -> none.

%% Reasons that lie with the executor.
-spec of_failure(atom()) -> badly | none.
of_failure(Reason) when Reason =:= framework_error; Reason =:= framework_unavailable; Reason =:= worker_crashed;
                        Reason =:= worker_protocol_error; Reason =:= worker_hung; Reason =:= worker_oom; Reason =:= worker_process_limit;
                        Reason =:= worker_start_failed; Reason =:= heartbeat_timeout; Reason =:= task_timeout;
                        Reason =:= poison_task; Reason =:= tool_failed; Reason =:= iteration_limit;
                        Reason =:= output_schema_mismatch; Reason =:= native_panic; Reason =:= internal ->
    badly;
of_failure(_) ->
    none.
