%% @doc Which memory the tasks of an agent go on with, by the agent and the configuration.
-module(execution_namespace).

-export([of_agent/1]).

%% @doc Options of a submit. `memory_namespace': of tasks that name none. `namespace': what stands before whatever they name, where
%% `memory_federation' is false: then no two agents share a conversation or a value, whatever names they use.
-spec of_agent(Agent :: map()) -> #{memory_namespace => binary(), namespace => binary()}.
of_agent(Agent) ->
    case agent_config:get([native_capabilities, distributed_memory], true) of
        false ->
            %% The store refuses a task that asks for memory by itself; an agent's own is left out.
            #{};
        _ ->
            Named = #{memory_namespace => maps:get(memory_namespace, Agent, <<>>)},
            case agent_config:get([performance_enhancements, memory_federation], true) of
                false -> Named#{namespace => <<"agents/", (maps:get(id, Agent, <<>>))/binary>>};
                _ -> Named
            end
    end.
