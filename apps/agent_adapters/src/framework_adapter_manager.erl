%% @doc Manager of the framework workers: leases them, starts and ends them. It never opens a port and never waits.
%%
%% Decisions are in {@link framework_adapter_leases}; here its effects are carried out, and the view table is kept, so that
%% views read without asking anybody.
-module(framework_adapter_manager).
-behaviour(gen_server).


%% API
-export([start_link/0]).
-export([lease/1]).
-export([cancel_lease/1]).
-export([warm_agent/2]).
-export([restart_workers/1]).
-export([attach/1]).

%% gen_server
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% Failed imports in a row after which a framework counts as unavailable and waiting tasks are refused.
-define(ZYGOTE_FAILURES, 3).
%% Length of the id in a runtime path is bounded (a Unix socket's path is at most 107 bytes).
-define(MAX_FRAMEWORK_NAME, 32).
%% How long an agent's environment is taken for what it was, in ms, and of how many agents that is kept.
-define(FOUND_MS, 1000).
-define(MAX_FOUND, 1000).

-record(zygote, {state = starting :: starting | up | down, failures = 0 :: non_neg_integer(), restarts = 0 :: non_neg_integer(),
                 reason = <<>> :: binary(), os_pid = 0 :: non_neg_integer(), info = <<>> :: binary()}).
-record(manager, {
    leases :: framework_adapter_leases:leases(),
    pids = #{} :: #{binary() => {pid(), reference()}},
    monitors = #{} :: #{reference() => binary()},
    zygotes = #{} :: #{binary() => #zygote{}},
    %% Environments that are being made, with what waits for each, the newest first. It holds no place among the workers.
    held = #{} :: #{binary() => {framework_adapter_lock:env(), [{framework_adapter_leases:key(), framework_adapter_leases:request()}]}},
    %% Starts that wait for their zygote.
    starts = #{} :: #{binary() => [{binary(), framework_adapter_leases:key(), map()}]},
    %% Workers of other machines: the environment of each, those without an agent, starts that wait for one, and what was attached ever.
    remotes = #{} :: #{pid() => {Env :: none | binary(), OfferId :: binary(), reference()}},
    offers = #{} :: #{Env :: binary() => [pid()]},
    wanting = #{} :: #{Env :: binary() => [{binary(), framework_adapter_leases:key(), map()}]},
    attached = 0 :: non_neg_integer(),
    owners = #{} :: #{reference() => reference()},
    %% Environments of agents as they were found a moment ago: to find one takes several questions to the file system.
    found = #{} :: #{term() => {framework_adapter_lock:env(), UntilMs :: integer()}},
    %% Leases that their worker has not confirmed: one that ends before gives its request back.
    granted = #{} :: #{reference() => {WorkerId :: binary(), framework_adapter_leases:key(), map()}}
}).

%% @doc Starts the manager.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Asks for a worker; the answer is a message, see `docs/internal_api.md'.
-spec lease(map()) -> {ok, reference()}.
lease(Request) ->
    Ref = make_ref(),
    gen_server:cast(?MODULE, {lease, Ref, Request}),
    {ok, Ref}.

%% @doc Takes a lease request back that has not been granted.
-spec cancel_lease(reference()) -> ok.
cancel_lease(Ref) ->
    gen_server:cast(?MODULE, {cancel, Ref}).

%% @doc See {@link framework_adapter_pool:warm_agent/2}.
-spec warm_agent(Agent :: map(), Tenant :: binary()) -> ok.
warm_agent(Agent, Tenant) ->
    gen_server:cast(?MODULE, {warm, Agent, Tenant}).

%% @doc Ends the idle workers of a framework and, as they finish, the busy ones; gives the number of idle ones ended.
-spec restart_workers(binary()) -> {ok, non_neg_integer()}.
restart_workers(Framework) ->
    gen_server:call(?MODULE, {restart_workers, Framework}).

%% @doc Takes a worker of another machine.
-spec attach(agent_native:remote()) -> ok.
attach(Remote) ->
    gen_server:cast(?MODULE, {attach, Remote}).

-spec init([]) -> {ok, #manager{}, {continue, start}}.
init([]) ->
    Limits = #{max_per_framework => agent_config:get([workers, max_per_framework], 4),
               max_waiting => agent_config:get([workers, max_waiting], 10000)},
    {ok, #manager{leases = framework_adapter_leases:new(Limits)}, {continue, start}}.

-spec handle_continue(start, #manager{}) -> {noreply, #manager{}}.
handle_continue(start, M) ->
    %% A manager that was restarted takes over nobody: workers of the former one end with it (`rest_for_one').
    true = ets:delete_all_objects(framework_adapter_pool:table()),
    Warm = agent_config:get([workers, warm_frameworks], []),
    {noreply, lists:foldl(fun warm/2, M, Warm)}.

-spec handle_call({restart_workers, binary()}, gen_server:from(), #manager{}) -> {reply, {ok, non_neg_integer()}, #manager{}}.
handle_call({restart_workers, Framework}, _From, M = #manager{leases = Leases, pids = Pids}) ->
    Mine = [{State, maps:get(Id, Pids)} || {Id, Key, State} <- framework_adapter_leases:workers(Leases), element(1, Key) =:= Framework,
                                           is_map_key(Id, Pids)],
    Idle = [Pid || {idle, {Pid, _}} <- Mine],
    lists:foreach(fun framework_adapter_worker:stop/1, Idle),
    lists:foreach(fun framework_adapter_worker:retire/1, [Pid || {leased, {Pid, _}} <- Mine]),
    {reply, {ok, length(Idle)}, M}.

-spec handle_cast(term(), #manager{}) -> {noreply, #manager{}}.
handle_cast({lease, Ref, #{framework := F, agent := Given, tenant := Tenant, task_id := TaskId, owner := Owner} = Asked}, M0) ->
    {Env, M} = environment(F, Given, maps:get(environments, Asked, []), M0),
    Agent = Given#{environment => Env},
    Request = #{ref => Ref, owner => Owner, task_id => TaskId, agent => Agent, depth => maps:get(depth, Asked, 0),
                alone => maps:get(alone, Asked, false)},
    Key = key(F, Agent, Env, Tenant),
    case usable(F, Env, M) of
        ok ->
            {noreply, request(Key, Request, M)};
        {installable, _} ->
            {noreply, hold(Key, Request, Env, M)};
        {error, Error} ->
            Owner ! {adapter, Ref, {refused, Error}},
            {noreply, M}
    end;
handle_cast({warm, #{framework := F} = Given, Tenant}, M0) ->
    {Env, M} = environment(F, Given, [], M0),
    N = agent_config:get([workers, warm], 1),
    case N > 0 andalso usable(F, Env, M) of
        ok -> {noreply, run(framework_adapter_leases:warm(key(F, Given, Env, Tenant), Given#{environment => Env}, N, M#manager.leases), M)};
        _ -> {noreply, M}
    end;
handle_cast({attach, Remote}, M = #manager{attached = N, monitors = Monitors}) ->
    Id = <<"remote-", (integer_to_binary(N + 1))/binary>>,
    Spec = (worker_spec(Id, <<>>, #{}, <<>>))#{remote => Remote},
    case framework_adapter_worker_sup:start_worker(Spec) of
        {ok, Pid} ->
            Mon = monitor(process, Pid),
            Remotes = (M#manager.remotes)#{Pid => {none, Id, Mon}},
            {noreply, M#manager{attached = N + 1, remotes = Remotes, monitors = Monitors#{Mon => Id}}};
        {error, _} -> {noreply, M}
    end;
handle_cast({cancel, Ref}, M = #manager{granted = Granted}) ->
    {noreply, taken_back(Ref, forget_owner(Ref, M#manager{granted = maps:remove(Ref, Granted)}))}.

-spec handle_info(term(), #manager{}) -> {noreply, #manager{}}.
handle_info({worker, Id, {ready, View}}, M) ->
    view(Id, View),
    {noreply, run(framework_adapter_leases:ready(Id, M#manager.leases), M)};
handle_info({worker, Id, {released, Ref, View}}, M) ->
    view(Id, View),
    {noreply, run(framework_adapter_leases:released(Id, Ref, M#manager.leases), M)};
handle_info({worker, Id, retiring}, M = #manager{leases = Leases}) ->
    {noreply, M#manager{leases = framework_adapter_leases:retiring(Id, Leases)}};
handle_info({worker, _, {leased, Ref}}, M = #manager{granted = Granted}) ->
    {noreply, M#manager{granted = maps:remove(Ref, Granted)}};
%% It takes no more: that crossed the lease.
handle_info({worker, Id, {declined, Ref}}, M = #manager{granted = Granted}) ->
    M1 = run(framework_adapter_leases:released(Id, Ref, M#manager.leases), M#manager{granted = maps:remove(Ref, Granted)}),
    {noreply, again([Ref || is_map_key(Ref, Granted)], Granted, M1)};
handle_info({worker, Id, {busy, View}}, M) ->
    view(Id, View#{since_ms => erlang:system_time(millisecond)}),
    {noreply, M};
handle_info({worker, Id, {killing, _Why}}, M) ->
    view(Id, #{state => killing}),
    {noreply, M};
handle_info({offer, Id, Pid, Env, View}, M = #manager{remotes = Remotes}) when is_map_key(Pid, Remotes) ->
    {noreply, offered(Id, Pid, Env, View, M)};
handle_info({zygote, Env, {up, #{os_pid := OsPid, info := Info, restarts := Restarts}}}, M) ->
    Z = #zygote{state = up, os_pid = OsPid, info = Info, restarts = Restarts},
    {Starts, Waiting} = take_starts(Env, M),
    M1 = zygote(Env, Z, M#manager{starts = Waiting}),
    {noreply, lists:foldl(fun start/2, M1, Starts)};
handle_info({zygote, Env, {down, #{reason := Reason, log := Log}}}, M) ->
    {noreply, zygote_down(Env, Reason, Log, M)};
handle_info({installed, Name, How}, M) ->
    {noreply, installed(Name, How, M)};
%% The installer was started anew, and knows of no build.
handle_info({installer, _}, M = #manager{held = Held}) ->
    lists:foreach(fun({Env, _}) -> framework_adapter_installer:make(Env) end, maps:values(Held)),
    {noreply, M};
handle_info({'DOWN', Mon, process, Pid, Reason}, M = #manager{monitors = Monitors}) ->
    case maps:take(Mon, Monitors) of
        {Id, Monitors1} -> {noreply, worker_down(Id, Reason, remote_down(Pid, M#manager{monitors = Monitors1}))};
        error -> {noreply, owner_down(Mon, M)}
    end;
handle_info(_, M) ->
    {noreply, M}.

%% ---- leases

%% A worker is of one agent in one version and one environment, and of one tenant.
-spec key(binary(), map(), framework_adapter_lock:env(), binary()) -> framework_adapter_leases:key().
key(Framework, Agent, #{name := Environment}, Tenant) ->
    {Framework, maps:get(id, Agent, <<>>), {maps:get(version, Agent, 0), Environment}, Tenant}.

-spec request(framework_adapter_leases:key(), map(), #manager{}) -> #manager{}.
request(Key, #{ref := Ref, owner := Owner} = Request, M = #manager{owners = Owners, leases = Leases}) ->
    run(framework_adapter_leases:request(Key, Request, Leases), M#manager{owners = Owners#{Ref => monitor(process, Owner)}}).

-spec run({[framework_adapter_leases:effect()], framework_adapter_leases:leases()}, #manager{}) -> #manager{}.
run({Effects, Leases}, M) ->
    lists:foldl(fun effect/2, M#manager{leases = Leases}, Effects).

-spec effect(framework_adapter_leases:effect(), #manager{}) -> #manager{}.
effect({grant, Id, #{ref := Ref, owner := Owner} = Request}, M = #manager{pids = Pids, leases = Leases, granted = Granted}) ->
    {Pid, _} = maps:get(Id, Pids),
    {Id, Key, _} = lists:keyfind(Id, 1, framework_adapter_leases:workers(Leases)),
    framework_adapter_worker:lease(Pid, Ref, Owner),
    forget_owner(Ref, M#manager{granted = Granted#{Ref => {Id, Key, Request}}});
effect({stop, Id}, M = #manager{pids = Pids}) ->
    case Pids of
        #{Id := {Pid, _}} -> framework_adapter_worker:stop(Pid);
        #{} -> ok
    end,
    M;
effect({retire, Id}, M = #manager{pids = Pids}) ->
    {Pid, _} = maps:get(Id, Pids),
    framework_adapter_worker:retire(Pid),
    M;
effect({refuse, #{ref := Ref, owner := Owner}, Why}, M) ->
    Owner ! {adapter, Ref, {refused, refusal(Why)}},
    forget_owner(Ref, M);
effect({start, Id, Key, Agent}, M) ->
    #{environment := #{name := Name, framework := Env} = Wanted} = Agent,
    case {offer_or_room(Env, element(1, Key), Wanted, M), M#manager.zygotes} of
        {{offer, Pid, Rest}, _} ->
            bind({Id, Key, Agent}, Pid, M#manager{offers = (M#manager.offers)#{Env => Rest}});
        {none, _} ->
            M#manager{wanting = maps:update_with(Env, fun(L) -> L ++ [{Id, Key, Agent}] end, [{Id, Key, Agent}], M#manager.wanting)};
        {room, #{Name := #zygote{state = up}}} ->
            start({Id, Key, Agent}, M);
        _ ->
            Starts = maps:update_with(Name, fun(L) -> L ++ [{Id, Key, Agent}] end, [{Id, Key, Agent}], M#manager.starts),
            ensure_zygote(Wanted, M#manager{starts = Starts})
    end.

-spec start({binary(), framework_adapter_leases:key(), map()}, #manager{}) -> #manager{}.
start({Id, {Framework, AgentId, _, Tenant}, Agent}, M = #manager{pids = Pids, monitors = Monitors}) ->
    Spec = worker_spec(Id, Framework, Agent, Tenant),
    true = ets:insert(framework_adapter_pool:table(),
                      {Id, #{worker => Id, framework => Framework, agent_id => AgentId, state => starting,
                             task_id => <<>>, started_ms => erlang:system_time(millisecond)}}),
    case framework_adapter_worker_sup:start_worker(Spec) of
        {ok, Pid} ->
            Mon = monitor(process, Pid),
            M#manager{pids = Pids#{Id => {Pid, Mon}}, monitors = Monitors#{Mon => Id}};
        {error, Reason} ->
            worker_down(Id, Reason, M)
    end.

-spec worker_spec(binary(), binary(), map(), binary()) -> framework_adapter_worker:spec().
worker_spec(Id, Framework, Agent, Tenant) ->
    Environment = maps:get(name, maps:get(environment, Agent, #{}), <<>>),
    #{id => Id, framework => Framework, environment => Environment, agent => Agent, tenant => Tenant, manager => self(),
      block_grace_ms => agent_config:get([workers, block_grace_ms], 10000),
      recycle_after => agent_config:get([workers, recycle_after], 100)}.

-spec worker_down(binary(), term(), #manager{}) -> #manager{}.
worker_down(Id, Reason, M = #manager{pids = Pids, leases = Leases}) ->
    true = ets:delete(framework_adapter_pool:table(), Id),
    M1 = M#manager{pids = maps:remove(Id, Pids)},
    How = case Reason of
              {shutdown, {worker_start_failed, Detail}} -> {start_failed, Detail};
              _ -> normal
          end,
    count_restart(Id, Reason, Leases),
    M2 = run(framework_adapter_leases:ended(Id, How, Leases), M1),
    again([Ref || {Ref, {W, _, _}} <- maps:to_list(M2#manager.granted), W =:= Id], M2#manager.granted, M2).

%% Leases that their worker never confirmed: these tasks know of no worker yet, and wait for another one.
-spec again([reference()], #{reference() => {binary(), framework_adapter_leases:key(), map()}}, #manager{}) -> #manager{}.
again(Refs, Granted, M) ->
    lists:foldl(fun(Ref, Acc = #manager{granted = Left}) ->
                    {_, Key, Request} = maps:get(Ref, Granted),
                    request(Key, Request, Acc#manager{granted = maps:remove(Ref, Left)})
                end, M, Refs).

-spec count_restart(binary(), term(), framework_adapter_leases:leases()) -> ok.
count_restart(_, {shutdown, Normal}, _) when Normal =:= stopped; Normal =:= recycled ->
    ok;
count_restart(Id, _, Leases) ->
    case lists:keyfind(Id, 1, framework_adapter_leases:workers(Leases)) of
        {_, Key, _} ->
            _ = ets:update_counter(framework_adapter_pool:table(), {restarts, element(1, Key)}, 1,
                                   {{restarts, element(1, Key)}, 0}),
            ok;
        false ->
            ok
    end.

%% ---- workers of other machines

%% One that is offered goes before one of this machine: they were attached to take work.
-spec offer_or_room(binary(), binary(), framework_adapter_lock:env(), #manager{}) -> {offer, pid(), [pid()]} | room | none.
offer_or_room(Env, Framework, Wanted, #manager{offers = Offers} = M) ->
    case Offers of
        #{Env := [Pid | Rest]} -> {offer, Pid, Rest};
        #{Env := []} -> case has_room(Framework, Wanted, M) of true -> room; false -> none end;
        #{} -> room
    end.

%% Whether this machine may have one more; the one that is asked for is counted already.
-spec has_room(binary(), framework_adapter_lock:env(), #manager{}) -> boolean().
has_room(Framework, Wanted, #manager{leases = Leases, pids = Pids, remotes = Remotes, wanting = Wanting}) ->
    Waiting = [Id || {Id, _, _} <- lists:append(maps:values(Wanting))],
    IsHere = fun(Id) ->
                 case Pids of
                     #{Id := {Pid, _}} -> not is_map_key(Pid, Remotes);
                     #{} -> not lists:member(Id, Waiting)
                 end
             end,
    Here = [Id || {Id, Key, _} <- framework_adapter_leases:workers(Leases), element(1, Key) =:= Framework, IsHere(Id)],
    framework_adapter_lock:state(Wanted) =:= ok andalso length(Here) =< max_here().

-spec max_here() -> pos_integer().
max_here() ->
    agent_config:get([workers, max_per_framework], 4).

%% It has said HELLO: it is bound to what waits for one, or kept.
-spec offered(binary(), pid(), binary(), map(), #manager{}) -> #manager{}.
offered(Id, Pid, Env, View, M = #manager{remotes = Remotes, offers = Offers, wanting = Wanting}) ->
    {none, Id, Mon} = maps:get(Pid, Remotes),
    Offer = View#{worker => Id, framework => Env, agent_id => <<>>, state => offered, task_id => <<>>},
    true = ets:insert(framework_adapter_pool:table(), {Id, Offer}),
    M1 = M#manager{remotes = Remotes#{Pid => {Env, Id, Mon}}},
    case Wanting of
        #{Env := [Start | Rest]} ->
            capacity(Env, bind(Start, Pid, M1#manager{wanting = Wanting#{Env => Rest}, offers = maps:merge(#{Env => []}, Offers)}));
        #{} ->
            capacity(Env, M1#manager{offers = Offers#{Env => maps:get(Env, Offers, []) ++ [Pid]}})
    end.

-spec bind({binary(), framework_adapter_leases:key(), map()}, pid(), #manager{}) -> #manager{}.
bind({Id, {Framework, AgentId, _, Tenant}, Agent}, Pid, M = #manager{remotes = Remotes, pids = Pids, monitors = Monitors}) ->
    {_, OfferId, Mon} = maps:get(Pid, Remotes),
    [{_, View}] = ets:take(framework_adapter_pool:table(), OfferId),
    Bound = View#{worker => Id, framework => Framework, agent_id => AgentId, state => starting},
    true = ets:insert(framework_adapter_pool:table(), {Id, Bound}),
    framework_adapter_worker:bind(Pid, worker_spec(Id, Framework, Agent, Tenant)),
    M#manager{pids = Pids#{Id => {Pid, Mon}}, monitors = Monitors#{Mon => Id}}.

-spec remote_down(pid(), #manager{}) -> #manager{}.
remote_down(Pid, M = #manager{remotes = Remotes, offers = Offers}) ->
    case maps:take(Pid, Remotes) of
        {{none, _, _}, Left} ->
            M#manager{remotes = Left};
        {{Env, OfferId, _}, Left} ->
            true = ets:delete(framework_adapter_pool:table(), OfferId),
            Others = lists:delete(Pid, maps:get(Env, Offers, [])),
            capacity(Env, M#manager{remotes = Left, offers = Offers#{Env => Others}});
        error ->
            M
    end.

%% Says how many workers there may be; where the environment is not installed here, those of other machines are all.
-spec capacity(binary(), #manager{}) -> #manager{}.
capacity(Env, M = #manager{remotes = Remotes, leases = Leases}) ->
    There = length([x || {E, _, _} <- maps:values(Remotes), E =:= Env]),
    Extra = case framework_adapter_env:available(Env) of
                ok -> There;
                {error, _} -> There - max_here()
            end,
    run(framework_adapter_leases:extra(Env, Extra, Leases), M).

%% ---- zygotes

-spec usable(binary(), framework_adapter_lock:env(), #manager{}) -> ok | {installable | error, agent_error:t()}.
usable(Framework, _, _) when byte_size(Framework) > ?MAX_FRAMEWORK_NAME ->
    {error, agent_error:new(framework_unavailable, <<"a framework's name has at most 32 characters">>)};
usable(Framework, #{name := Name, framework := Env} = Wanted, #manager{zygotes = Zygotes, offers = Offers}) ->
    case Zygotes of
        %% Workers of another machine were here: whoever was cut off attaches again.
        _ when is_map_key(Env, Offers) ->
            ok;
        #{Name := #zygote{state = up}} ->
            ok;
        #{Name := #zygote{failures = N, reason = Reason}} when N >= ?ZYGOTE_FAILURES ->
            {error, agent_error:new(framework_unavailable, Reason, #{<<"framework">> => Framework})};
        _ ->
            framework_adapter_pool:state_of(Framework, Wanted)
    end.

%% ---- environments

-spec environment(binary(), map(), [binary()], #manager{}) -> {framework_adapter_lock:env(), #manager{}}.
environment(Framework, Agent, [], M = #manager{found = Found}) ->
    Key = {Framework, maps:with([id, project, requirements, python], Agent)},
    Now = erlang:monotonic_time(millisecond),
    case Found of
        #{Key := {Env, Until}} when Until > Now ->
            {Env, M};
        #{} ->
            Env = framework_adapter_lock:of_agent(Framework, Agent),
            Others = case map_size(Found) < ?MAX_FOUND of true -> Found; false -> #{} end,
            {Env, M#manager{found = Others#{Key => {Env, Now + ?FOUND_MS}}}}
    end;
environment(Framework, Agent, Recorded, M) ->
    {framework_adapter_lock:of_agent(Framework, Agent, Recorded), M}.

%% What the configuration wants loaded at the start, made first where that is allowed.
-spec warm(binary(), #manager{}) -> #manager{}.
warm(Framework, M = #manager{held = Held}) ->
    Env = #{name := Name} = framework_adapter_lock:of_framework(Framework),
    case framework_adapter_pool:state_of(Framework, Env) of
        %% The installer is started after us, and makes what is held.
        {installable, _} -> M#manager{held = Held#{Name => {Env, []}}};
        _ -> ensure_zygote(Env, M)
    end.

%% A request waits for its environment, which is being made.
-spec hold(framework_adapter_leases:key(), framework_adapter_leases:request(), framework_adapter_lock:env(), #manager{}) -> #manager{}.
hold(Key, #{ref := Ref, owner := Owner} = Request, #{name := Name} = Env, M = #manager{held = Held, owners = Owners}) ->
    {_, Waiting} = maps:get(Name, Held, {Env, []}),
    case length(Waiting) >= agent_config:get([workers, max_waiting], 10000) of
        true ->
            Owner ! {adapter, Ref, {refused, refusal(queue_full)}},
            M;
        false ->
            framework_adapter_installer:make(Env),
            Owner ! {adapter, Ref, {event, {log, #{
                level => <<"info">>, source => <<"environment">>,
                message => <<"waits for the Python environment ", Name/binary, ", which is being made">>}}}},
            M#manager{held = Held#{Name => {Env, [{Key, Request} | Waiting]}}, owners = Owners#{Ref => monitor(process, Owner)}}
    end.

-spec installed(binary(), ok | {error, agent_error:t()}, #manager{}) -> #manager{}.
installed(Name, How, M = #manager{held = Held}) ->
    case {maps:take(Name, Held), How} of
        {error, _} ->
            M;
        {{{Env, Waiting}, Rest}, ok} ->
            %% They are watched already, so they enter the queue as they are.
            lists:foldr(fun({Key, Request}, Acc) -> run(framework_adapter_leases:request(Key, Request, Acc#manager.leases), Acc) end,
                        ensure_zygote(Env, M#manager{held = Rest}), Waiting);
        {{{_, Waiting}, Rest}, {error, Error}} ->
            lists:foldr(fun({_, #{ref := Ref, owner := Owner}}, Acc) ->
                            Owner ! {adapter, Ref, {refused, Error}},
                            forget_owner(Ref, Acc)
                        end, M#manager{held = Rest}, Waiting)
    end.

%% A request that waits, for its environment or a worker, is taken back.
-spec taken_back(reference(), #manager{}) -> #manager{}.
taken_back(Ref, M = #manager{held = Held, leases = Leases}) ->
    Others = maps:map(fun(_, {Env, Waiting}) -> {Env, [W || W = {_, #{ref := R}} <- Waiting, R =/= Ref]} end, Held),
    run(framework_adapter_leases:cancel(Ref, Leases), M#manager{held = Others}).

-spec refuse_starts(binary(), {worker_start_failed, binary()} | {unavailable, agent_error:t()}, #manager{}) -> #manager{}.
refuse_starts(Name, Why, M) ->
    {Starts, Waiting} = take_starts(Name, M),
    lists:foldl(fun({Id, Key, _}, Acc) ->
                    {Refused, L} = framework_adapter_leases:refuse(Key, Why, Acc#manager.leases),
                    {Ended, L1} = framework_adapter_leases:ended(Id, normal, L),
                    run({Refused ++ Ended, L1}, Acc)
                end, M#manager{starts = Waiting}, Starts).

-spec ensure_zygote(framework_adapter_lock:env(), #manager{}) -> #manager{}.
ensure_zygote(#{name := Name}, M = #manager{zygotes = Zygotes}) when is_map_key(Name, Zygotes) ->
    M;
ensure_zygote(#{name := Name} = Env, M) ->
    case framework_adapter_zygote_sup:ensure(Env, self()) of
        {ok, _} -> zygote(Name, #zygote{}, M);
        {error, Reason} -> zygote_down(Name, iolist_to_binary(io_lib:format("~0p", [Reason])), [], M)
    end.

-spec zygote_down(binary(), binary(), [binary()], #manager{}) -> #manager{}.
zygote_down(Env, Reason, Log, M = #manager{zygotes = Zygotes}) ->
    #zygote{failures = N, restarts = R} = maps:get(Env, Zygotes, #zygote{}),
    Text = iolist_to_binary([Reason, case Log of [] -> []; _ -> [": ", lists:last(Log)] end]),
    Down = fun(Failures, Said) -> zygote(Env, #zygote{state = down, failures = Failures, restarts = R + 1, reason = Said}, M) end,
    case {wrong(Log), N + 1 >= ?ZYGOTE_FAILURES} of
        {{true, Wrong}, _} ->
            %% It would be the same the next time.
            Error = agent_error:new(framework_unavailable, Wrong, #{<<"environment">> => Env}),
            refuse_starts(Env, {unavailable, Error}, Down(max(N + 1, ?ZYGOTE_FAILURES), Wrong));
        {false, false} ->
            Down(N + 1, Text);
        {false, true} ->
            refuse_starts(Env, {worker_start_failed, Text}, Down(N + 1, Text))
    end.

%% The environment is not what its lock says, in the zygote's words.
-spec wrong([binary()]) -> {true, binary()} | false.
wrong(Log) ->
    case [Words || Line <- lists:reverse(Log), Kind <- [<<"WrongLock: ">>, <<"WrongVersion: ">>],
                   [<<>>, Words] <- [binary:split(Line, Kind)]] of
        [Words | _] -> {true, Words};
        [] -> false
    end.

-spec take_starts(binary(), #manager{}) -> {[{binary(), framework_adapter_leases:key(), map()}], map()}.
take_starts(Env, #manager{starts = Starts}) ->
    {maps:get(Env, Starts, []), maps:remove(Env, Starts)}.

-spec zygote(binary(), #zygote{}, #manager{}) -> #manager{}.
zygote(Env, Z = #zygote{state = State, failures = N, restarts = R, reason = Reason, os_pid = OsPid, info = Info}, M) ->
    true = ets:insert(framework_adapter_pool:table(),
                      {{zygote, Env}, #{state => State, failing => N >= ?ZYGOTE_FAILURES, restarts => R, reason => Reason, os_pid => OsPid,
                                        info => Info}}),
    M#manager{zygotes = (M#manager.zygotes)#{Env => Z}}.

%% ---- owners

-spec forget_owner(reference(), #manager{}) -> #manager{}.
forget_owner(Ref, M = #manager{owners = Owners}) ->
    case maps:take(Ref, Owners) of
        {Mon, Owners1} -> true = demonitor(Mon, [flush]), M#manager{owners = Owners1};
        error -> M
    end.

-spec owner_down(reference(), #manager{}) -> #manager{}.
owner_down(Mon, M = #manager{owners = Owners}) ->
    case [Ref || {Ref, Mo} <- maps:to_list(Owners), Mo =:= Mon] of
        [Ref] -> taken_back(Ref, M#manager{owners = maps:remove(Ref, Owners)});
        [] -> M
    end.

-spec refusal(queue_full | {worker_start_failed, binary()} | {unavailable, agent_error:t()}) -> agent_error:t().
refusal({unavailable, Error}) ->
    Error;
refusal(queue_full) ->
    agent_error:new(queue_full, <<"too many tasks wait for a worker of this framework">>);
refusal({worker_start_failed, Text}) ->
    agent_error:new(worker_start_failed, <<"the worker could not be started: ", Text/binary>>).

-spec view(binary(), map()) -> ok.
view(Id, Changes) ->
    case ets:lookup(framework_adapter_pool:table(), Id) of
        [{_, View}] -> true = ets:insert(framework_adapter_pool:table(), {Id, maps:merge(View, Changes)}), ok;
        [] -> ok
    end.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun(state, #manager{pids = Pids, leases = Leases, zygotes = Zygotes}) ->
                     #{workers => maps:size(Pids), waiting => framework_adapter_leases:waiting(Leases),
                       zygotes => maps:keys(Zygotes)};
                %% A request holds its agent, with its instructions.
                (message, _) -> hidden;
                (log, _) -> [];
                (_, Other) -> Other
             end, Status).
