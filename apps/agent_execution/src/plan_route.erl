%% @doc Who runs the steps of a plan: each as a task of its own would be routed, on the executor that the step names.
-module(plan_route).

-export([check/2]).
-export([resolve/2]).

%% Faults that an answer lists; it has to fit in the trailers of a call.
-define(MAX_FAULTS, 30).

%% @doc Whether every step could run now; all faults at once, by the field of the first step that has them.
-spec check(Header :: map(), Payload :: term()) -> ok | {error, agent_error:t()}.
check(Header, Payload) ->
    case agent_native:plan_executors(Payload) of
        {error, native_down} ->
            {error, agent_error:new(native_down, <<"the native library is not loaded">>)};
        All ->
            Executors = lists:usort([E || {_, E, _} <- All]),
            Mixed = length(Executors) > 1 andalso not agent_config:get([agent_execution, hybrid_execution], true),
            faults([fault(One, Header) || One <- All], Mixed)
    end.

-spec fault({binary(), binary(), binary()}, map()) -> none | #{field := binary(), description := binary()}.
fault({Field, Executor, AgentId}, Header) ->
    Step = case AgentId of <<>> -> Header; _ -> Header#{agent_id => AgentId, agent_type => <<>>} end,
    case resolve(Step, Executor) of
        {ok, _, _} -> none;
        {error, #{reason := agent_not_found, message := Why}} ->
            [Step1 | _] = binary:split(Field, [<<".executor">>, <<".fallback_executors">>]),
            #{field => <<Step1/binary, ".agent_id">>, description => Why};
        {error, #{message := Why}} -> #{field => Field, description => Why}
    end.

-spec faults([none | map()], boolean()) -> ok | {error, agent_error:t()}.
faults(_, true) ->
    {error, agent_error:new(unsupported_field, <<"the plan mixes executors, and agent_execution.hybrid_execution is false">>,
                            #{<<"field">> => <<"task.plan.steps">>})};
faults(All, false) ->
    case lists:sublist([F || F <- All, F =/= none], ?MAX_FAULTS) of
        [] ->
            ok;
        [#{field := Field, description := Why} | _] = Faults ->
            {error, (agent_error:new(invalid_field, <<Field/binary, ": ", Why/binary>>))#{fields => Faults}}
    end.

%% @doc Agent and route of a step, by its header and the executor that it names. A step may name an agent by its type.
-spec resolve(Header :: map(), Executor :: binary()) -> {ok, Agent :: map(), execution_router:route()} | {error, agent_error:t()}.
resolve(Header, Executor) ->
    %% Nothing is drawn for a step: a plan that goes on after a crash is to find it where it was.
    Step = maps:merge(maps:remove(task_id, Header#{has_plan => false, fallback_frameworks => []}), asked(Executor)),
    case {agent_engine:resolve(Step), Step} of
        {{error, #{reason := agent_not_found}}, #{agent_id := Id}} when Id =/= <<>> ->
            agent_engine:resolve(Step#{agent_id => <<>>, agent_type => Id});
        {Resolved, _} ->
            Resolved
    end.

-spec asked(binary()) -> map().
asked(<<"native">>) -> #{method => native, framework => <<>>};
asked(<<"auto">>) -> #{method => auto, framework => <<>>};
asked(Framework) -> #{method => framework, framework => Framework}.
