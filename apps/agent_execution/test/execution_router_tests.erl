%% @doc Which executor a task gets, and why.
-module(execution_router_tests).

-include_lib("eunit/include/eunit.hrl").

%% The two examples of the original document, as `singularity_config' renders them.
native_first() ->
    config(#{[agent_execution, default_execution_method] => <<"native">>, [agent_execution, framework_fallback] => true,
             [frameworks] => #{<<"langchain">> => #{enabled => true, use_for => [<<"research">>, <<"conversational">>]},
                               <<"crewai">> => #{enabled => true, use_for => [<<"collaborative">>, <<"planning">>]},
                               <<"autogen">> => #{enabled => false, use_for => []}}}).

framework_first() ->
    config(#{[agent_execution, default_execution_method] => <<"framework_preferred">>,
             [framework_preferences] => #{<<"research_tasks">> => <<"langchain">>, <<"collaborative_tasks">> => <<"crewai">>,
                                          <<"conversation_tasks">> => <<"autogen">>, <<"planning_tasks">> => <<"native">>}}).

config(Given) ->
    execution_router:config(fun(Path, Default) -> maps:get(Path, Given, Default) end).

all_there() ->
    #{<<"langchain">> => ok, <<"crewai">> => ok, <<"autogen">> => ok, <<"custom">> => ok}.

executor(Request, World, Config) ->
    case execution_router:route(maps:merge(#{method => auto}, Request), World, Config) of
        {ok, #{executor := E}} -> E;
        {error, #{reason := Reason}} -> Reason
    end.

native_first_test_() ->
    C = native_first(),
    [?_assertEqual(<<"langchain">>, executor(#{task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"langchain">>, executor(#{task_type => <<"conversation">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{task_type => <<"planning">>}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"coding">>}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"research">>, method => native}, all_there(), C)),
     %% A missing framework is replaced, because framework_fallback says so.
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"planning">>}, #{<<"langchain">> => ok}, C)),
     ?_assertEqual(<<"crewai">>, executor(#{method => framework, framework => <<"autogen">>}, all_there(), C))].

framework_first_test_() ->
    C = framework_first(),
    [?_assertEqual(<<"langchain">>, executor(#{task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{task_type => <<"collaborative">>}, all_there(), C)),
     ?_assertEqual(<<"autogen">>, executor(#{task_type => <<"conversational">>}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"planning">>}, all_there(), C)),
     %% No rule for the type: some framework, before the native agent.
     ?_assertNotEqual(<<"native">>, executor(#{task_type => <<"coding">>}, all_there(), C)),
     %% No fallback in this configuration: refused, with the remedy.
     ?_assertEqual(framework_unavailable, executor(#{task_type => <<"collaborative">>}, #{<<"langchain">> => ok}, C)),
     %% Nobody asked for a framework in particular: native is no replacement.
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"coding">>}, #{}, C))].

what_the_task_says_wins_test_() ->
    C = framework_first(),
    [?_assertEqual(<<"autogen">>, executor(#{framework => <<"autogen">>, task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"custom:echo">>, executor(#{framework => <<"custom:echo">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{agent_framework => <<"crewai">>, task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{framework => <<"gone">>, fallback_frameworks => [<<"crewai">>]}, all_there(), C)),
     ?_assertEqual(framework_unavailable, executor(#{framework => <<"gone">>}, all_there(), C)),
     ?_assertEqual(framework_unavailable, executor(#{method => framework, framework => <<"gone">>}, all_there(), C)),
     %% It comes with a plan, whose steps have routes of their own.
     ?_assertEqual(executor(#{}, all_there(), C), executor(#{method => hybrid}, all_there(), C))].

a_disabled_framework_names_the_key_to_change_test() ->
    {error, #{message := Message}} =
        execution_router:route(#{method => framework, framework => <<"autogen">>}, all_there(),
                               config(#{[frameworks] => #{<<"autogen">> => #{enabled => false}}})),
    ?assertNotEqual(nomatch, binary:match(Message, <<"enabled = true">>)).

tools_that_only_frameworks_have_refuse_the_native_agent_test_() ->
    C = config(#{}),
    Tools = [<<"calculate">>, <<"my_tools:lookup">>],
    [?_assertEqual(<<"langchain">>, executor(#{tools => Tools}, #{<<"langchain">> => ok}, C)),
     ?_assertEqual(unsupported_field, executor(#{tools => Tools, method => native}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{tools => [<<"now">>]}, all_there(), C))].

candidates_are_explained_test() ->
    {ok, #{candidates := Candidates, reason := Reason}} =
        execution_router:route(#{method => auto, task_type => <<"planning">>}, #{<<"langchain">> => ok}, native_first()),
    [#{executor := <<"crewai">>, refused := Refused} | _] = Candidates,
    ?assertNotEqual(<<>>, Refused),
    ?assertNotEqual(nomatch, binary:match(Reason, <<"in place of crewai">>)).

of_two_equals_the_healthy_one_is_taken_test() ->
    World = #{<<"a">> => ok, <<"b">> => ok, stats => #{<<"a">> => #{ok => 1, failed => 9}}},
    C = config(#{[agent_execution, default_execution_method] => <<"framework_preferred">>}),
    ?assertEqual(<<"b">>, executor(#{}, World, C)).
