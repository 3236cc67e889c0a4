%% @doc Agents and types of the configuration. `agent_types' holds the built-in types with what the file changes of them,
%% `agents' what the file names.
-module(engine_agents).

-export([types/0]).
-export([configured/0]).
-export([is_built_in/1]).

-define(BUILT_IN, [<<"researcher">>, <<"coder">>, <<"planner">>, <<"assistant">>]).

%% @doc Whether the engine has a type without any configuration.
-spec is_built_in(binary()) -> boolean().
is_built_in(Name) ->
    lists:member(Name, ?BUILT_IN).

%% @doc Types by name.
-spec types() -> [{binary(), map()}].
types() ->
    Given = agent_config:get([agent_types], #{}),
    [{Name, agent(Name, Name, maps:get(Name, Given, #{}))} || Name <- lists:usort(?BUILT_IN ++ maps:keys(Given))].

%% @doc Agents that the file names and that are no built-in types.
-spec configured() -> [map()].
configured() ->
    Agents = agent_config:get([agents], #{}),
    [agent(Name, engine_names:binary(maps:get(agent_type, A, <<"assistant">>)), A)
     || {Name, A} <- maps:to_list(Agents), not is_built_in(Name)].

-spec agent(binary(), binary(), map()) -> map().
agent(Id, Type, Given) ->
    Profile = maps:get(crew_profile, Given, maps:with([role, goal, backstory, expected_output], Given)),
    Default = #{id => Id, agent_type => Type, framework => <<"auto">>, instructions => instructions(Type),
                model => <<"default">>, tools => [<<"now">>, <<"calculate">>], memory_namespace => <<>>, labels => #{},
                configured => true, etag => <<"configured">>, create_ms => 0},
    Known = maps:with([framework, instructions, model, tools, memory_namespace, project, entrypoint, requirements, python,
                       concurrency], Given),
    (maps:merge(Default, maps:filter(fun(_, V) -> V =/= undefined end, Known)))#{crew_profile => Profile}.

%% For a node without configuration; `singularity_config' writes fuller ones.
-spec instructions(binary()) -> binary().
instructions(<<"researcher">>) -> <<"You are a careful researcher. Answer with what is known, and say what is not.">>;
instructions(<<"coder">>) -> <<"You are a programmer. Answer with code that works, and little else.">>;
instructions(<<"planner">>) -> <<"You are a planner. Answer with numbered steps.">>;
instructions(_) -> <<"You are a helpful assistant. Answer briefly.">>.
